"""A real broker for tests: mosquitto of this machine, on a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from worker.embedded.child_process import free_port


@dataclass
class Broker:
    """A mosquitto that keeps sessions over restarts; user ``ris``, password ``secret``."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"mqtt://ris:s%2Fcret@127.0.0.1:{self.port}"

    def start(self) -> None:
        program = program_of("mosquitto")
        self.folder.mkdir(exist_ok=True)
        self.port = self.port or free_port()
        passwords = self.folder / "passwords"
        if not passwords.exists():
            made = [program_of("mosquitto_passwd"), "-b", "-c", str(passwords), "ris", "s/cret"]
            subprocess.run(made, check=True, capture_output=True)
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {self.folder}/\nautosave_interval 1\n"
            + (f"user {'root'}\n" if os.geteuid() == 0 else "")
        )
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-c", str(config), "-v"], stdout=log, stderr=log
            )
        time.sleep(0.3)
        assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


def program_of(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed on this machine: there is no broker to test with")
    return found
