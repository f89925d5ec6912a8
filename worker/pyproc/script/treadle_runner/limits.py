"""A memory limit by address space, for machines where the agent cannot use control groups."""

from __future__ import annotations

import resource
from typing import Any


class AddressSpace:
    """Limits what this process may map beyond what it has now, until ``lift``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._before: tuple[int, int] | None = None

    def impose(self) -> None:
        """Put the limit in force; raises OSError or ValueError where the system refuses."""
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = _mapped() + self.limit
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        self._before = (soft, hard)

    def lift(self) -> None:
        """Put back what was in force before. Harmless when nothing was imposed."""
        if self._before is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (self._before[0], hard))
        self._before = None


def ran_out(exc: BaseException) -> bool:
    """Whether a MemoryError comes from the allocator and not from a raise statement of the function."""
    if not isinstance(exc, MemoryError):
        return False
    import opcode

    raise_statement = opcode.opmap.get("RAISE_VARARGS")
    tb = exc.__traceback__
    if tb is None or raise_statement is None:
        return True
    while tb.tb_next is not None:
        tb = tb.tb_next
    code: Any = tb.tb_frame.f_code
    return bool(0 <= tb.tb_lasti < len(code.co_code) and code.co_code[tb.tb_lasti] != raise_statement)


def _mapped() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
