"""A real S3-compatible server of one's own on loopback, with a bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

BUCKET = "footage"


@dataclass
class ObjectServer:
    """What it holds is lost when it stops."""

    port: int
    log: Path
    _process: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/ris/index"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process.append(
                subprocess.Popen(
                    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                    stdout=log,
                    stderr=log,
                )
            )
        deadline_s = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    break
            except OSError:
                assert time.monotonic() < deadline_s, self.log.read_text()
                time.sleep(0.1)
        self.client().create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        for process in self._process:
            process.kill()
            process.wait()
        self._process.clear()

    def client(self) -> Any:
        """A client that is not the product's."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        )

    def everything(self) -> dict[str, bytes]:
        """Content of every object in the bucket, by key."""
        client = self.client()
        found = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {
            one["Key"]: client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in found
        }

    def objects(self) -> dict[str, bytes]:
        """Those of shards."""
        return {key: body for key, body in self.everything().items() if key.endswith(".runs")}

    def put(self, key: str, body: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=key, Body=body)

    def remove(self, key: str) -> None:
        self.client().delete_object(Bucket=BUCKET, Key=key)

    def clear(self) -> None:
        for key in self.everything():
            self.remove(key)


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = ObjectServer(port, folder / "objects.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()
