"""A real RIS under test: commands as typed, rows as Postgres has them, logs on failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

from worker.core.sampling import IntervalPolicy
from worker.core.types import SizePx
from worker.embedded.child_process import is_alive, log_tail
from worker.embedded.state import ServiceState, read_state
from worker.video.decode import sample_video

REPO = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-P", "-m", "worker.admin")
PATIENCE_S = 240.0
_POLL_S = 0.02

Found = TypeVar("Found")


def clean_env(changes: Mapping[str, str]) -> dict[str, str]:
    """This environment without any RIS setting but the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RIS_")}
    return inherited | {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"} | dict(changes)


@dataclass(frozen=True)
class Ris:
    """One RIS on one data folder, driven through its command line."""

    data_dir: Path
    settings: Mapping[str, str]
    cwd: Path

    @property
    def env(self) -> dict[str, str]:
        return clean_env({"RIS_API_PORT": "0", **self.settings, "RIS_DATA_DIR": str(self.data_dir)})

    def run(
        self, *arguments: str, expect: int = 0, changes: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end; its exit status must be ``expect``. ``changes``: environment."""
        done = subprocess.run(
            [*CLI, *arguments],
            env=self.env | dict(changes or {}),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == expect, (
            f"ris {' '.join(arguments)} ended with {done.returncode}, not {expect}\n"
            f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        )
        return done

    def json(
        self, *arguments: str, expect: int = 0, changes: Mapping[str, str] | None = None
    ) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*arguments, "--json", expect=expect, changes=changes).stdout)

    def start(self, *arguments: str, stderr_path: Path) -> subprocess.Popen[bytes]:
        """A command as a terminal starts it: leader of a process group of its own."""
        with stderr_path.open("wb") as stderr:
            return subprocess.Popen(
                [*CLI, *arguments],
                env=self.env,
                cwd=self.cwd,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def state(self) -> ServiceState:
        state = read_state(self.data_dir)
        assert state is not None, f"nothing runs on {self.data_dir}\n{self.logs()}"
        return state

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of one statement, through a connection of its own."""
        url = str(self.state.database_url).replace("+psycopg", "")
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
            return connection.execute(statement, parameters).fetchall()

    def kill(self, name: str) -> int:
        """kill -9 of a supervised process; the pid it had."""
        pid = self.state.pids[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> None:
        self.eventually(
            lambda: self.state.pids.get(name, old_pid) != old_pid, f"{name} is started again"
        )

    def ingest(
        self,
        clip: Path,
        camera: str,
        every_s: float,
        changes: Mapping[str, str] | None = None,
    ) -> str:
        """Submit a clip without waiting; the id of its job."""
        found = self.json(
            *("ingest", str(clip), "--camera", camera, "--every", str(every_s), "--no-wait"),
            changes=changes,
        )
        return str(found["submitted"][0]["job_id"])

    def job(self, job_id: str) -> tuple[str, int, str | None]:
        """State, attempts and error code of a job."""
        return self.rows("select state, attempts, error_code from jobs where id = %s", job_id)[0]

    def frames_of(self, job_id: str) -> int:
        """Frames committed so far by an ingest job."""
        return int(
            self.rows("select frame_count from video_segments where job_id = %s", job_id)[0][0]
        )

    def wait_done(self, job_id: str) -> None:
        self.eventually(lambda: self.job(job_id)[0] in {"done", "failed"}, f"job {job_id} ends")
        state, _, error_code = self.job(job_id)
        assert state == "done", f"job {job_id}: {error_code}\n{self.logs()}"

    def wait_mid_job(self, job_id: str, frames: int = 4) -> None:
        """Until the job has committed some frames; it must not be over by then."""
        self.eventually(lambda: self.frames_of(job_id) >= frames, f"job {job_id} commits frames")
        assert self.job(job_id)[0] == "running", "the clip is too short for this test"

    def assert_every_frame_once(self, clip: Path, camera: str, every_s: float) -> None:
        """Exactly the frames that an undisturbed run keeps, each with one run of rows."""
        found = self.rows(
            "select f.pts, count(r.frame_id) from frames f join cameras c on c.id = f.camera_id"
            " left join (select m.frame_id from f_map_runs m join shards s on s.id = m.shard_id"
            "  join index_generations g on g.id = s.generation_id where g.state = 'live') r"
            " on r.frame_id = f.id where c.name = %s group by f.id, f.pts order by f.pts",
            camera,
        )
        assert found == [(pts, 1) for pts in kept_pts(clip, every_s)], self.logs()
        segments = self.rows(
            "select s.outcome, s.frame_count from video_segments s"
            " join cameras c on c.id = s.camera_id where c.name = %s",
            camera,
        )
        assert segments == [("complete", len(found))]

    def eventually(
        self, probe: Callable[[], Found], what: str, patience_s: float = PATIENCE_S
    ) -> Found:
        """The first true value of ``probe``; a database that is away is waited for."""
        deadline = time.monotonic() + patience_s
        last: object = None
        while time.monotonic() < deadline:
            try:
                found = probe()
            except psycopg.OperationalError as error:
                last = error
            else:
                if found:
                    return found
                last = found
            time.sleep(_POLL_S)
        raise AssertionError(
            f"after {patience_s:.0f} s it is not so that {what}; last: {last}\n{self.logs()}"
        )

    def logs(self) -> str:
        """The end of every log of this RIS."""
        paths = [*sorted((self.data_dir / "logs").glob("*.log")), self.data_dir / "redis/redis.log"]
        paths.append(self.data_dir / "postgres/postgres.log")
        return "\n".join(f"--- {path.name}\n{log_tail(path, 25)}" for path in paths)


def kept_pts(clip: Path, every_s: float) -> list[int]:
    """What an undisturbed run keeps of a clip."""
    with sample_video(
        clip,
        IntervalPolicy(every_s),
        input_size=SizePx(32, 32),
        picture_max_side_px=64,
        max_px=4_000_000,
    ) as video:
        return [frame.pts for frame in video]


def processes_of(folder: Path) -> list[str]:
    """Living processes that name a folder in command line, working folder or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            named = [*process.cmdline(), process.cwd(), *process.environ().values()]
            is_ours = process.pid != os.getpid() and any(str(folder) in text for text in named)
            if is_ours and is_alive(process.pid):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return found
