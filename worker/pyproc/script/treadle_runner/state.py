"""The process between two attempts.

A function may change the process that it runs in. What can be put back cheaply is put
back after every attempt; when something remains that cannot, the answer says so and the
agent replaces the process before it runs anything else in it. All of this runs before the
answer is sent, so that whatever goes wrong here is blamed on the attempt that caused it.

Modules stay imported and module-level variables keep their values: that is what makes the
second call fast, and it is documented.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import importlib
import io
import os
import sys
import threading
import time
from typing import Any, Callable

_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 0.02
_FD_CHECK_EVERY = 256
_FD_LIMIT = 512

# The functions of C: those of the signal module turn each answer into an enum, slowly.
_signal: Any = importlib.import_module("_signal")

_WATCHED_SIGNALS = tuple(
    int(number)
    for number in (
        getattr(_signal, name, None)
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGALRM", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCHLD")
    )
    if number is not None
)

# What functions share with each other and with the runner.
_CORE = ("builtins", "sys", "os", "io", "json", "json.encoder", "json.decoder", "pickle", "struct", "threading", "time")
# Names that come and go, or that settle puts back.
_LOOSE = {"stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__", "path", "argv", "tracebacklimit"}
_LOOSE |= {"excepthook", "displayhook", "unraisablehook", "breakpointhook", "dont_write_bytecode", "ps1", "ps2", "_"}
_LOOSE |= {"last_type", "last_value", "last_traceback", "last_exc", "environ"}

# Bound at start: user code may replace what the modules hold.
_getcwd, _chdir, _dup2, _umask = os.getcwd, os.chdir, os.dup2, os.umask
_getpriority, _waitpid, _count = os.getpriority, os.waitpid, _thread._count
_getsignal, _setsignal, _alarm = _signal.getsignal, _signal.signal, _signal.alarm
_getrecursion, _setrecursion = sys.getrecursionlimit, sys.setrecursionlimit
_gettrace, _settrace, _getprofile, _setprofile = sys.gettrace, sys.settrace, sys.getprofile, sys.setprofile


def adopt_orphans() -> bool:
    """Make this process the reaper of its descendants, so that daemonized ones stay visible to it."""
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _libc() -> tuple[Callable[..., int] | None, Callable[..., int] | None]:
    """fflush and waitpid of the C library.

    What C code printed belongs to the attempt that ran it. waitpid, because the usual
    answer, "no children", is an exception in Python and a number in C.
    """
    try:
        library = ctypes.CDLL(None)
        return library.fflush, library.waitpid
    except (OSError, AttributeError, TypeError):
        return None, None


def open_stream(fd: int) -> io.TextIOWrapper:
    """A text stream for stdout or stderr that never fails on a character and is sent line by line."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw, 8192), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class Process:
    """What the process looked like when it was fresh, and the way back there."""

    def __init__(self) -> None:
        self._null, self._log = raise_fd(os.dup(0)), raise_fd(os.dup(1))
        self.out, self.err = open_stream(1), open_stream(2)
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        self._stdin = sys.stdin
        self._fflush, self._c_waitpid = _libc()
        self._attempts = 0
        self.note()
        self._cwd = os.getcwd()
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        self._nice = _getpriority(os.PRIO_PROCESS, 0)
        self._recursion = _getrecursion()
        self._signals = [(number, _getsignal(number)) for number in _WATCHED_SIGNALS]
        self._threads = _count()

    def note(self) -> None:
        """Take environment, sys.path and the core modules as they are now for the normal ones.

        Called again after a function was loaded: what an import sets is meant to last.
        """
        self._environ: dict[Any, Any] = dict(_environ_data())
        self._path = list(sys.path)
        self._modules = dict(sys.modules)
        self._names = [(module.__dict__, _names(module)) for module in map(importlib.import_module, _CORE)]

    def patched(self) -> bool:
        """Whether a name in a core module was replaced or removed. New names do no harm.

        Takes some 50 microseconds: it is asked after the first attempts of each function.
        """
        if not self._modules.items() <= sys.modules.items():
            return True
        return any(not then.items() <= now.items() for now, then in self._names)

    def settle(self) -> bool:
        """Put the process back; returns whether it has to be replaced."""
        if _getrecursion() != self._recursion:
            _setrecursion(self._recursion)
        if _gettrace() is not None:
            _settrace(None)
        if _getprofile() is not None:
            _setprofile(None)
        worn = self._put_back()
        self._flush()
        # Threads and children last: both may still print.
        if self._left_behind():
            worn = True
            self._flush()
        return worn

    def flush(self) -> None:
        """Send what the Python streams hold."""
        self._flush()

    def _put_back(self) -> bool:
        worn = False
        try:
            _dup2(self._log, 1)
            _dup2(self._log, 2)
            _dup2(self._null, 0)
        except OSError:
            worn = True
        try:
            if _getcwd() != self._cwd:
                _chdir(self._cwd)
        except OSError:
            try:
                _chdir(self._cwd)
            except OSError:
                worn = True
        _umask(self._umask)
        _alarm(0)
        for number, handler in self._signals:
            if _getsignal(number) is not handler:
                if handler is None:
                    worn = True
                else:
                    _setsignal(number, handler)
        if os.environ._data != self._environ:  # type: ignore[attr-defined]
            self._restore_environ()
        if sys.path != self._path:
            sys.path[:] = self._path
        if _getpriority(0, 0) != self._nice:
            worn = True
        self._attempts += 1
        if self._attempts % _FD_CHECK_EVERY == 0 and _open_files() > _FD_LIMIT:
            worn = True
        return worn

    def _restore_environ(self) -> None:
        # Through the mapping, so that C code sees it too.
        environ = os.environ
        data = _environ_data()
        for key in [key for key in data if key not in self._environ]:
            del environ[_decode(key)]
        for key, value in self._environ.items():
            if data.get(key) != value:
                environ[_decode(key)] = _decode(value)

    def _flush(self) -> None:
        if sys.stdout is not self.out or sys.stderr is not self.err or sys.stdin is not self._stdin:
            self._restore_streams()
        try:
            self.out.flush()
            self.err.flush()
        except BaseException:  # closed or detached by the function
            self._restore_streams()
        if self._fflush is not None:
            self._fflush(None)

    def _restore_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr, self.out, self.err):
            try:
                stream.flush()
            except BaseException:  # it may be anything, or None
                continue
        if not _usable(self.out):
            self.out = open_stream(1)
        if not _usable(self.err):
            self.err = open_stream(2)
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        sys.stdin = self._stdin

    def _left_behind(self) -> bool:
        if _count() == self._threads and not self._children():
            return False
        # A pool that nobody closed ends with its last reference, a thread that has
        # nothing left to do ends by itself: both deserve a moment.
        gc.collect()
        deadline = time.monotonic() + _GRACE
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        while _count() != self._threads or self._children():
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.001)
        return False

    def _children(self) -> bool:
        """Whether a child is alive; the dead ones are collected on the way."""
        if self._c_waitpid is not None:
            while True:
                got = self._c_waitpid(-1, None, 1)  # 1 is WNOHANG
                if got <= 0:
                    return got == 0
        try:
            while True:
                if _waitpid(-1, 1)[0] == 0:
                    return True
        except ChildProcessError:
            return False


def _names(module: Any) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _LOOSE}


def _usable(stream: io.TextIOWrapper) -> bool:
    try:
        stream.flush()
    except BaseException:
        return False
    return True


def _environ_data() -> dict[Any, Any]:
    data: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]
    return data


def _decode(value: Any) -> str:
    return os.fsdecode(value)


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def raise_fd(fd: int) -> int:
    """Move a descriptor out of the range that functions close or write to by number."""
    import fcntl
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    base = 4096 if soft == resource.RLIM_INFINITY or soft > 8192 else max(soft - 32, 10)
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base)
    except OSError:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return high
