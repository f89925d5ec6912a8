"""A Redis server for tests."""

import shutil
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Optional

from harness.process import Process
from harness.wait import until


def program(name: str) -> Path:
    """Finds a program of the Redis distribution."""
    found = shutil.which(name)
    assert found, f"these tests need {name} on PATH (Debian and Ubuntu: apt-get install redis-server)"
    return Path(found)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Redis:
    """A redis-server on a free port that keeps an append-only file and syncs it before it answers.

    With a sync each second it may hold back for two seconds what it has answered, while
    the disk is busy: a kill would then lose what was acknowledged.
    """

    def __init__(self, folder: Path, *config: str) -> None:
        self.folder = folder
        self._config = config
        # Another process may take a port first.
        for _ in range(5):
            self.port = free_port()
            if self._answers_after(self._start()):
                return
        raise AssertionError(f"redis-server does not start:\n{self.process.log()}")

    def _start(self) -> Process:
        args = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        args += ["--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning", *self._config]
        self.process = Process("redis", args, self.folder, program=program("redis-server"))
        return self.process

    def _answers_after(self, process: Process) -> bool:
        """Waits until the server answers; False when it has ended instead."""
        return until(lambda: self._state(process), "Redis to answer") == "up"

    def _state(self, process: Process) -> Optional[str]:
        if not process.running:
            return "ended"
        return "up" if self._cli("PING").stdout.strip() == "PONG" and process.running else None

    def _cli(self, *args: str) -> "subprocess.CompletedProcess[str]":
        command = [str(program("redis-cli")), "-h", "127.0.0.1", "-p", str(self.port), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    def command(self, *args: str) -> str:
        """Runs a command that must succeed and returns the answer."""
        ended = self._cli("-e", *args)
        assert ended.returncode == 0, f"redis-cli {' '.join(args)}: {ended.stdout}{ended.stderr}"
        return ended.stdout.strip()

    def url(self, namespace: str = "") -> str:
        """A store URL: of a store that nobody uses yet, unless its namespace is given."""
        return f"redis://127.0.0.1:{self.port}?namespace={namespace or uuid.uuid4().hex}"

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        """Starts the server again, which must have ended, with what it had written."""
        assert not self.process.running
        assert self._answers_after(self._start()), f"redis-server does not start again:\n{self.process.log()}"

    def forget(self) -> None:
        """Removes what the server, which must have ended, has written."""
        assert not self.process.running
        for path in self.folder.glob("appendonly*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def close(self) -> None:
        self.process.stop()
        self.forget()
