"""Processes: of the binary under test, and what it needs beside it."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Optional

from harness.wait import SOON, until

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TREADLE_BIN") or ROOT / "bin" / "treadle").resolve()


def _default_hangup() -> None:
    """A child of `nohup` would ignore SIGHUP, as it should, and not read its files again."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Process:
    """A process, treadle unless another program is named, in a process group of its own,
    with its output in files.

    stop is safe to call at any time and any number of times.
    """

    def __init__(
        self,
        name: str,
        args: list[str],
        folder: Path,
        cwd: Optional[Path] = None,
        env: Optional[dict[str, str]] = None,
        program: Path = BINARY,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.args = args
        self.stdout = folder / f"{name}.out"
        self.stderr = folder / f"{name}.log"
        # A process that is started again under its name writes on.
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self._seen = out.tell()
            self._popen = subprocess.Popen(
                [str(program), *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd or folder,
                env={**environment(folder), **(env or {})},
                start_new_session=True,
                preexec_fn=_default_hangup,
            )
        self._started, self._ended = time.monotonic(), 0.0
        self._reaper = threading.Thread(target=self._reap, name=f"wait for {name}", daemon=True)
        self._reaper.start()

    def _reap(self) -> None:
        self._popen.wait()
        self._ended = time.monotonic()

    def lasted(self) -> float:
        """How long the process ran, in seconds, which must have ended."""
        assert not self.running
        return self._ended - self._started

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._reaper.is_alive()

    def output(self) -> str:
        """What this process printed on standard output."""
        return self.stdout.read_bytes()[self._seen :].decode()

    def log(self) -> str:
        """What processes of this name printed on standard error."""
        return self.stderr.read_text(errors="replace")

    def ready(self) -> dict[str, Any]:
        """Waits for the ready line of --json."""

        def line() -> Optional[str]:
            first, newline, _ = self.output().partition("\n")
            if not newline and not self.running:
                raise AssertionError(
                    f"{self.name} ended with {self._popen.returncode} before it was ready:\n{self.log()}"
                )
            return first if newline else None

        ready = json.loads(until(line, f"the ready line of {self.name}"))
        assert isinstance(ready, dict)
        return ready

    def signal(self, number: signal.Signals) -> None:
        """Sends the process itself a signal, as `kill` does."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to this process alone; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.exit_code()

    def exit_code(self, timeout: float = SOON) -> int:
        """Waits for the end of the process."""
        self._reaper.join(timeout)
        if self.running:
            raise AssertionError(f"{self.name} did not end within {timeout:g} s:\n{self.log()}")
        code = self._popen.returncode
        assert code is not None
        return code

    def stop(self) -> None:
        """Kills whatever is left of the process group."""
        try:
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.exit_code()


def environment(home: Path) -> dict[str, str]:
    """The environment of a process under test: nothing of the caller's settings, a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TREADLE_", "XDG_", "PYTHON"))}
    return {**kept, "HOME": str(home)}
