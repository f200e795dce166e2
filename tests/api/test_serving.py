"""The socket that is served on."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.__main__ import bound
from tests.parts import with_settings
from worker.context import Context


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_answer_waits_for_the_one_before_to_be_acknowledged(context: Context, host: str) -> None:
    """Nagle's algorithm is off for connections that are accepted."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = bound(with_settings(context, api_host=host, api_port=0).settings)
        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            try:
                return await found
            finally:
                writer.close()

    with ThreadPoolExecutor(1) as apart:  # tests of the page leave a loop that runs in this thread
        assert apart.submit(asyncio.run, accepted()).result() == 1
