"""A PostgreSQL server of its own for a run: in a directory of its own, on a Unix socket, never the machine's own cluster."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["Postgres", "programs"]

START_S = 60.0
USERS = ("postgres", "nobody")


def programs() -> Path:
    """The folder with `initdb` and `postgres`. Raises FileNotFoundError when there is none."""
    on_path = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *folders]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise FileNotFoundError("no PostgreSQL server (Debian: apt-get install postgresql)")


class Postgres:
    """A context manager; `stop` and `start` as often as wanted. Runs as an unprivileged user also where we are root."""

    def __init__(self) -> None:
        self._programs = programs()
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.user = next((name for name in USERS if _exists(name)), None) if os.geteuid() == 0 else None
        self.dsn = f"host={self.directory} dbname=postgres user=billing"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        try:
            if self.user is not None:
                shutil.chown(self.directory, self.user)
            data = str(self.directory / "data")
            self._run("initdb", "-D", data, "-U", "billing", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Returns once it takes connections."""
        command = [str(self._programs / "postgres"), "-D", str(self.directory / "data"), "-k", str(self.directory)]
        command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            ready = self._try("pg_isready", "-q", "-h", str(self.directory))
            if ready:
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start\n{(self.directory / 'log').read_text('utf-8', 'replace')[-2000:]}")

    def stop(self) -> None:
        """End it at once, as a crash would; what was committed stays."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGQUIT)
            process.wait(30)

    def _try(self, program: str, *arguments: str) -> bool:
        command = [str(self._programs / program), *arguments]
        return subprocess.run(command, check=False, cwd=self.directory, user=self.user, capture_output=True).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, check=False, cwd=self.directory, user=self.user, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.decode('utf-8', 'replace')[-1000:]}")


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
