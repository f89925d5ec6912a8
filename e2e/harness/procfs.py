"""What the kernel knows about processes."""

import os
from pathlib import Path
from typing import Optional


def exists(pid: int) -> bool:
    """Is the process there, and more than a zombie?"""
    return state(pid) not in (None, "Z", "X")


def state(pid: int) -> Optional[str]:
    """The state letter of a process, for example "S", or None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def mentioning(text: str) -> dict[int, str]:
    """Live processes whose command line contains text, other than this one: pid to command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and exists(int(entry)):
            found[int(entry)] = command
    return found


def peak_memory(pid: int) -> int:
    """The most memory that a process ever had resident, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} has no VmHWM")
