"""Kills what a killed agent left behind (Linux).

The agent holds the other end of stdin and closes it by exiting, however it exits. A runner
dies by its parent-death signal at that moment; processes that functions started may live on,
in sessions of their own. All of them carry the agent's mark: a limit on real-time CPU time
so large that it means nothing, which children inherit through fork, exec and setsid, and
which no library has a reason to change.

Arguments: the mark and the number of its low bits that tell the agent's runners apart.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def mark_of(pid: str) -> int:
    """The mark of a process, or 0."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            for line in file:
                if line.startswith(b"Max realtime timeout"):
                    soft = line.split()[3]
                    return int(soft) if soft.isdigit() else 0
    except (OSError, IndexError):
        pass
    return 0


def is_dead(pid: str) -> bool:
    """Whether a process is gone, or only waits to be collected."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def main() -> None:
    """Wait for the agent's end, then kill until nothing is left."""
    mark, bits = int(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    for _ in range(500):
        left = [
            pid
            for pid in os.listdir("/proc")
            if pid.isdigit() and mark_of(pid) >> bits == mark >> bits and not is_dead(pid)
        ]
        if not left:
            return
        for pid in left:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)


main()
