"""What servers do to have a feed read what it must not: redirects, playlists, names that change.

Beside them stand listeners on addresses that are not allowed: nobody may come there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.test_live_streams import write_ts
from tests.video.clips import make_clip
from tests.web_server import (
    canary,
    content,
    in_ranges,
    make_authority,
    sends_to,
    serving,
    with_login,
)
from worker.core.sampling import IntervalPolicy
from worker.core.types import SizePx
from worker.errors import AddressRefused, FeedFailed
from worker.video.address import AddressRules
from worker.video.live_feed import open_live
from worker.video.live_values import LiveOptions

ALLOWED = AddressRules(("rtsp", "http", "https"), ("127.0.0.1/32",), None)
HEAD = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
METADATA = "http://169.254.169.254/latest/meta-data/iam.ts"
Look_up = Callable[..., list[Any]]


def options(rules: AddressRules = ALLOWED) -> LiveOptions:
    return LiveOptions(IntervalPolicy(0.1), SizePx(32, 32), 160, 10**6, 1.0, rules)


def pictures(url: str, count: int, rules: AddressRules = ALLOWED) -> int:
    """How many pictures come, up to a number. Raises :class:`FeedFailed`."""
    video = open_live(url, options(rules), "feed x")
    try:
        seen = 0
        while seen < count:
            seen += video.step() is not None
        return seen
    finally:
        video.close()


def playlist(*lines: str) -> Any:
    return content((HEAD + "\n".join(lines) + "\n").encode())


def piece(where: str) -> Any:
    return playlist("#EXTINF:2.0,", where, "#EXT-X-ENDLIST")


# {host}: a listener that is not allowed; {web}: the server itself, which is.
SEGMENTS = (
    "http://{host}/a.ts", "https://{host}/a.ts", "//{host}/a.ts", "http://user@{host}/a.ts",
    "http://127.0.0.1@{host}/a.ts", "http://[::ffff:127.0.0.2]:{port}/a.ts",
    "http://2130706434:{port}/a.ts", "http://0x7f000002:{port}/a.ts", "http://127.2:{port}/a.ts",
    "http://0177.0.0.2:{port}/a.ts", "http://{host}#@127.0.0.1/a.ts", "HTTP://{host}/a.ts",
    METADATA, "http://metadata.google.internal/a.ts", "http://100.100.100.200/a.ts",
    "file:///etc/passwd", "file:/etc/hostname", "tcp://{host}", "udp://{host}", "rtp://{host}",
    "rtmp://{host}/a", "rtsp://{host}/a", "ftp://{host}/a.ts", "gopher://{host}/a.ts",
    "concat:http://{host}/a.ts|http://{host}/b.ts", "subfile,,start,0,end,9,,:http://{host}/a.ts",
    "crypto+http://{host}/a.ts", "crypto:file:/etc/passwd", "async:http://{host}/a.ts",
    "cache:http://{host}/a.ts", "httpproxy://{host}/a.ts", "tls://{host}", "unix:/tmp/a.ts",
    "fd:0", "pipe:0", "data:video/mp2t;base64,AAAA", "ipfs://{host}/a.ts",
)  # fmt: skip

PLAYLISTS = {
    "another playlist": ("#EXT-X-STREAM-INF:BANDWIDTH=1", "http://{host}/b.m3u8"),
    "another playlist in a file": ("#EXT-X-STREAM-INF:BANDWIDTH=1", "file:///etc/passwd"),
    "a key": ('#EXT-X-KEY:METHOD=AES-128,URI="http://{host}/k"', "#EXTINF:2.0,", "good.ts"),
    "a key in a file": ('#EXT-X-KEY:METHOD=AES-128,URI="file:/etc/hosts"', "#EXTINF:2,", "good.ts"),
    "a head": ('#EXT-X-MAP:URI="http://{host}/i.mp4"', "#EXTINF:2.0,", "good.ts"),
    "a part": ("#EXTINF:2.0,", "#EXT-X-BYTERANGE:100@0", "http://{host}/a.ts"),
    "a piece that sends elsewhere": ("#EXTINF:2.0,", "elsewhere.ts"),
    "sound": (
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",DEFAULT=YES,URI="http://{host}/s.m3u8"',
        '#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"',
        "http://{host}/b.m3u8",
    ),
}  # fmt: skip
REDIRECTS = (
    *((status, "http://{host}/a.ts") for status in (301, 302, 303, 307, 308)),
    (302, "file:///etc/passwd"), (302, METADATA), (302, "rtsp://{host}/a"), (302, "/good.ts"),
)  # fmt: skip


def test_there_are_many() -> None:
    assert (
        len(SEGMENTS) + len(PLAYLISTS) + len(REDIRECTS) >= 54
    )  # beside those of test_feed_address


def test_no_server_has_a_feed_read_what_is_not_allowed(tmp_path: Path) -> None:
    write_ts(tmp_path / "good.ts", 2, 2)
    with canary() as (port, came), serving() as web:
        host = f"127.0.0.2:{port}"
        good = content((tmp_path / "good.ts").read_bytes())
        web.answers |= {"/good.ts": good, "/elsewhere.ts": sends_to(f"http://{host}/a.ts")}
        named: dict[str, str] = {}
        for number, where in enumerate(SEGMENTS):
            named[where] = f"/{number}.m3u8"
            web.answers[named[where]] = piece(where.format(host=host, port=port))
        for number, (what, lines) in enumerate(PLAYLISTS.items()):
            named[what] = f"/p{number}.m3u8"
            web.answers[named[what]] = playlist(*(line.format(host=host) for line in lines))
        for number, (status, where) in enumerate(REDIRECTS):
            named[f"{status} {where}"] = f"/r{number}.ts"
            web.answers[f"/r{number}.ts"] = sends_to(where.format(host=host), status)

        def reason(path: str) -> str:
            with pytest.raises(FeedFailed) as failed:
                pictures(f"http://127.0.0.1:{web.port}{path}", 1)
            return failed.value.reason

        with ThreadPoolExecutor(12) as threads:
            found = dict(zip(named, threads.map(reason, named.values()), strict=True))
        assert (
            pictures(f"http://127.0.0.1:{web.port}/good.ts", 1) == 1
        )  # they failed for that alone
    assert came == []
    assert set(found.values()) <= {"not_allowed", "refused", "invalid", "unreachable"}, found
    for what in ("http://{host}/a.ts", METADATA, "another playlist", "a key", "a part"):
        assert found[what] == "not_allowed", what
    assert {found[f"{status} {where}"] for status, where in REDIRECTS} == {"refused"}


def test_a_name_that_changes_its_address_is_looked_at_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the address that is allowed, then, for the connection, one that is not."""
    write_ts(tmp_path / "good.ts", 2, 2)
    real = socket.getaddrinfo
    given: list[str] = []

    def look_up(host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
        if host != "rebind.example":
            return list(real(host, port, *rest, **named))
        given.append("127.0.0.1" if not given else "127.0.0.2")
        return list(real(given[-1], port, *rest, **named))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with canary() as (port, came), pytest.raises((FeedFailed, AddressRefused)) as refused:
        pictures(f"http://rebind.example:{port}/a.ts", 1)
    assert "not allowed" in str(refused.value)
    assert (given, came) == (["127.0.0.1", "127.0.0.2"], [])


def test_certificates_are_checked_against_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ts(tmp_path / "good.ts", 2, 2)
    root, tls = make_authority(tmp_path, "camera.example")
    real = socket.getaddrinfo
    names = ("camera.example", "other.example")

    def look_up(host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
        return list(real("127.0.0.1" if host in names else host, port, *rest, **named))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with serving(tls) as web:
        web.answers["/good.ts"] = content((tmp_path / "good.ts").read_bytes())
        web.answers["/live.m3u8"] = piece("good.ts")

        def failure(name: str) -> FeedFailed:
            with pytest.raises(FeedFailed, match="certificate") as failed:
                pictures(f"https://{name}:{web.port}/good.ts", 1)
            return failed.value

        assert failure("camera.example").reason == "unreachable"  # nobody vouches for it
        monkeypatch.setenv("SSL_CERT_FILE", str(root))
        for path in ("good.ts", "live.m3u8"):
            assert pictures(f"https://camera.example:{web.port}/{path}", 1) == 1
        assert "other.example" in str(failure("other.example"))
        assert "127.0.0.1" in str(failure("127.0.0.1"))


@pytest.mark.parametrize("kind", ["Basic", "Digest"])
def test_a_login_is_given_to_the_feeds_own_server_only(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_ts(tmp_path / "good.ts", 2, 2)
    good = content((tmp_path / "good.ts").read_bytes())
    with serving() as other, serving() as web:
        other.answers["/good.ts"] = good
        lines = ("#EXTINF:2.0,", f"http://127.0.0.1:{other.port}/good.ts", "#EXT-X-ENDLIST")
        web.answers["/live.m3u8"] = with_login("ris", "p@ss/w", kind, playlist(*lines))
        where = f"127.0.0.1:{web.port}/live.m3u8"
        assert pictures(f"http://ris:p%40ss%2Fw@{where}?token=hunter2", 1) == 1
        with pytest.raises(FeedFailed) as failed:
            pictures(f"http://ris:wrong@{where}", 1)
    assert failed.value.reason == "auth"
    assert not any(secret in caplog.text for secret in ("p%40ss%2Fw", "p@ss/w", "hunter2"))
    assert any("Authorization" in headers for _, headers in web.asked)
    assert other.asked
    assert not any("Authorization" in headers for _, headers in other.asked)


def test_encrypted_pieces_are_read(tmp_path: Path) -> None:
    write_ts(tmp_path / "good.ts", 2, 2)
    key, iv = b"0123456789abcdef", bytes(16)
    padder = padding.PKCS7(128).padder()
    plain = padder.update((tmp_path / "good.ts").read_bytes()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    with serving() as web:
        web.answers["/k"] = content(key)
        web.answers["/secret.ts"] = content(encryptor.update(plain) + encryptor.finalize())
        web.answers["/live.m3u8"] = playlist(
            f'#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x{iv.hex()}', "#EXTINF:2.0,", "secret.ts",
            "#EXT-X-ENDLIST",
        )  # fmt: skip
        assert pictures(f"http://127.0.0.1:{web.port}/live.m3u8", 2) == 2


def test_a_clip_whose_index_is_at_its_end_is_read_from_the_middle(tmp_path: Path) -> None:
    body = make_clip(tmp_path / "a.mp4", 60).read_bytes()
    index = body.index(b"moov") - 4
    assert index > body.index(b"mdat")
    free = (10**6).to_bytes(4, "big") + b"free" + bytes(10**6 - 8)
    body = body[:index] + free + body[index:]  # more than is read at once
    with serving() as web:
        web.answers["/a.mp4"] = in_ranges(body)
        assert pictures(f"http://127.0.0.1:{web.port}/a.mp4", 2) == 2
        assert len({headers["Range"] for _, headers in web.asked}) > 1


def test_a_body_that_breaks_off_is_a_lost_connection(tmp_path: Path) -> None:
    write_ts(tmp_path / "good.ts", 2, 2)
    body = (tmp_path / "good.ts").read_bytes()

    def cut(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) * 2))
        handler.end_headers()
        handler.wfile.write(body)

    with serving() as web, pytest.raises(FeedFailed) as failed:
        web.answers["/cut.ts"] = cut
        pictures(f"http://127.0.0.1:{web.port}/cut.ts", 100)
    assert failed.value.reason == "connection_lost"


def test_a_piece_that_is_gone_is_left_out(tmp_path: Path) -> None:
    write_ts(tmp_path / "good.ts", 2, 2)
    with serving() as web:
        web.answers["/good.ts"] = content((tmp_path / "good.ts").read_bytes())
        lines = ("#EXTINF:2.0,", "good.ts", "#EXTINF:2.0,", "gone.ts", "#EXT-X-DISCONTINUITY",
                 "#EXTINF:2.0,", "good.ts", "#EXT-X-ENDLIST")  # fmt: skip
        web.answers["/a.m3u8"] = playlist(*lines)
        assert pictures(f"http://127.0.0.1:{web.port}/a.m3u8", 3) == 3
