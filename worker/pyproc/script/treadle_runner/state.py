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
import builtins
import ctypes
import errno
import faulthandler
import fcntl
import gc
import importlib
import io
import os
import resource
import select
import sys
import termios
import threading
import time
from typing import Any, Callable

from . import settings

_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 0.02
# How many descriptors attempts may leave open, in all, before the runner is replaced: the
# eighth part of what the process may have, within these bounds.
_FD_SHARE, _FD_LEAST, _FD_MOST = 8, 8, 512

# As in wire.py: what a function has put into builtins is found, not used.
__builtins__ = dict(vars(builtins))

# The functions of C: those of the signal module turn each answer into an enum, slowly.
_signal: Any = importlib.import_module("_signal")

# Those that programs use; the others are looked at with the patches.
_WATCHED_SIGNALS = [
    int(getattr(_signal, "SIG" + name))
    for name in (
        "INT",
        "TERM",
        "ALRM",
        "CHLD",
        "PIPE",
        "HUP",
        "QUIT",
        "USR1",
        "USR2",
        "VTALRM",
        "PROF",
        "WINCH",
        "CONT",
    )
]
_ALL_SIGNALS = [number for number in range(1, _signal.NSIG) if number not in (_signal.SIGKILL, _signal.SIGSTOP)]

_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]

# What functions share with each other and with the runner.
_CORE = ("builtins", "sys", "os", "io", "json", "json.encoder", "json.decoder", "pickle", "struct", "threading", "time")
# The same, where somebody has imported it.
_SHARED = """
    asyncio asyncio.events asyncio.runners contextlib copy copyreg datetime functools http.client importlib linecache
    logging posixpath random re select selectors shutil signal socket ssl subprocess tempfile traceback urllib.request
    warnings
""".split()
# Names that come and go, or that settle puts back.
_LOOSE = {"stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__", "path", "argv", "tracebacklimit"}
_LOOSE |= {"excepthook", "displayhook", "unraisablehook", "breakpointhook", "dont_write_bytecode", "ps1", "ps2", "_"}
_LOOSE |= {"last_type", "last_value", "last_traceback", "last_exc", "environ"}
_LOOSE |= {
    "filters",
    "showwarning",
    "_filters_version",
    "_warnings_showwarning",
    "tempdir",
    "_name_sequence",
    "_event_loop_policy",
    "_opener",
}

# Bound at start: user code may replace what the modules hold.
_module = sys.modules.get
_getcwd, _chdir, _dup2, _umask = os.getcwd, os.chdir, os.dup2, os.umask
_getrlimit = resource.getrlimit
_getpriority, _waitpid, _count = os.getpriority, os.waitpid, _thread._count
_getsignal, _setsignal, _alarm = _signal.getsignal, _signal.signal, _signal.alarm
_wakeup = _signal.set_wakeup_fd
_uids, _no_dump = (os.geteuid, os.getegid), faulthandler.cancel_dump_traceback_later
_getitimer, _sigmask = _signal.getitimer, _signal.pthread_sigmask
_affinity: Callable[[int], Any] = getattr(os, "sched_getaffinity", lambda _: None)
_getrecursion, _setrecursion = sys.getrecursionlimit, sys.setrecursionlimit
_gettrace, _settrace, _getprofile, _setprofile = sys.gettrace, sys.settrace, sys.getprofile, sys.setprofile


# DefaultContext as decimal makes it.
_DECIMAL = (
    "Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999, capitals=1, clamp=0, flags=[], "
    "traps=[InvalidOperation, DivisionByZero, Overflow])"
)

_ioctl, _FIONREAD = fcntl.ioctl, termios.FIONREAD
_NOTHING = bytes(4)


def adopt_orphans() -> bool:
    """Make this process the reaper of its descendants, so that daemonized ones stay visible to it."""
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


class _C:
    """What is asked of the C library, where it can be had."""

    def __init__(self) -> None:
        self.waitpid: Callable[..., int] | None = None
        self.fflush: Callable[..., int] | None = None
        try:
            library = ctypes.CDLL(None)
            # The usual answer, "no children", is an exception in Python and a number in C.
            self.waitpid = library.waitpid
            self.fflush = library.fflush
            # What C code prints belongs to the attempt that runs it. Unbuffered it is there at
            # once; where that cannot be had, it is flushed after each attempt.
            stdout = ctypes.c_void_p.in_dll(library, "stdout")
            if library.setvbuf(stdout, None, 2, 0) == 0:  # 2 is _IONBF
                self.fflush = None
        except (OSError, AttributeError, TypeError, ValueError):
            pass


class _Signals:
    """Notes that somebody set a signal handler: to ask for those of 13 signals takes as long as two system calls.

    signal.signal calls what ``_signal`` holds. What C code does on its own is seen with the patches.
    """

    changed = False

    def watch(self) -> None:
        def signal(number: int, handler: Any, /) -> Any:
            self.changed = True
            return _setsignal(number, handler)

        signal.__doc__ = _setsignal.__doc__
        _signal.signal = signal


_signals = _Signals()


class _Audit:
    """Notes that somebody added an audit hook: it sees what everybody does, may forbid it, and can never be removed."""

    added = False

    def watch(self) -> None:
        add = sys.addaudithook

        def addaudithook(hook: Any) -> None:
            self.added = True
            add(hook)

        addaudithook.__doc__ = add.__doc__
        sys.addaudithook = addaudithook


_audit = _Audit()


class _Environ(dict[Any, Any]):
    """What os.environ keeps its variables in; notes that something was changed."""

    changed = False

    def __setitem__(self, key: Any, value: Any) -> None:
        self.changed = True
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.changed = True
        super().__delitem__(key)


def open_stream(fd: int) -> io.TextIOWrapper:
    """A text stream for stdout or stderr that never fails on a character and is sent line by line."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw, 8192), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class Process:
    """What the process looked like when it was fresh, and the way back there."""

    def __init__(self) -> None:
        self.settings = settings.Settings()
        self._null, self._log = raise_fd(os.dup(0)), raise_fd(os.dup(1))
        self.out, self.err = open_stream(1), open_stream(2)
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        self._stdin = sys.stdin
        self._c = _C()
        self._environ = os.environ
        self._variables = _Environ(os.environ._data)  # type: ignore[attr-defined]
        mapping: Any
        for mapping in (os.environ, os.environb):
            mapping._data = self._variables
        self._probe: Any = None
        self.note()
        self._unread = bytearray(4)
        self._cwd = os.getcwd()
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        self._nice = _getpriority(os.PRIO_PROCESS, 0)
        self._recursion = _getrecursion()
        _signals.watch()
        _audit.watch()
        self._handlers = _handlers()
        self._threads = _count()
        self._limits = _limits()
        self._rest = _rest()

    def note(self) -> None:
        """Take environment, sys.path and the core modules as they are now for the normal ones.

        Called again after a function was loaded: what an import sets is meant to last.
        """
        self._normal: dict[Any, Any] = dict(self._variables)
        self._variables.changed = False
        self._path = list(sys.path)
        self._modules = dict(sys.modules)
        self._finders = [*sys.meta_path, *sys.path_hooks]
        self._decimal = _decimal_default()
        modules = [importlib.import_module(name) for name in _CORE]
        modules += [sys.modules[name] for name in _SHARED if sys.modules.get(name) is not None]
        self._names = [(module.__dict__, _names(module)) for module in modules]
        self._watch_files()

    def patched(self) -> bool:
        """Whether a resource limit was changed, or a name in a core module replaced or removed.

        New names do no harm. Takes some 100 microseconds: it is asked after the first attempts of
        each function, and after those that took so long that it does not matter.
        """
        if _limits() != self._limits or _rest() != self._rest:
            return True
        if not self._modules.items() <= sys.modules.items() or _decimal_default() != self._decimal:
            return True
        # New ones come with imports, and stay with them.
        now = [*sys.meta_path, *sys.path_hooks]
        if now != self._finders and any(finder not in now for finder in self._finders):
            return True
        return any(not then.items() <= names.items() for names, then in self._names)

    def settle(self, ask_for_files: bool) -> bool:
        """Put the process back; returns whether it has to be replaced.

        This is on the path of every attempt: some 20 questions in 4 microseconds. Whether too many
        files are open is left out where the caller knows that they cannot be many.
        """
        worn = False
        try:
            if _getrecursion() != self._recursion:
                _setrecursion(self._recursion)
            if _gettrace() is not None or _getprofile() is not None:
                _settrace(None)
                _setprofile(None)
            # Without asking, as asking costs the same.
            _alarm(0)
            _no_dump()  # it may be one that ends the process
            _umask(self._umask)
            _dup2(self._log, 1)
            _dup2(self._log, 2)
            _dup2(self._null, 0)
            if _signals.changed:
                _signals.changed = False
                worn = self._restore_handlers()
            if _audit.added:
                worn = True
            self.settings.settle()
            if self._variables.changed or os.environ is not self._environ:
                self._restore_environ()
            if sys.path != self._path:
                sys.path[:] = self._path
            if _getpriority(0, 0) != self._nice:
                worn = True
            if _getcwd() != self._cwd:
                _chdir(self._cwd)
        except OSError:
            worn = self._restore_folder() or worn
        if ask_for_files and self._probe is not None and self._probe.poll(0) != self._unused and self._leaks():
            worn = True
        self.flush()
        # Threads and children last: both may still print.
        if (_count() != self._threads or self._children()) and self._left_behind():
            worn = True
            self.flush()
        return worn

    def _watch_files(self) -> None:
        """Choose the descriptors that are in use only when many are open.

        The system gives away the lowest free number. So one system call that looks at a few
        higher ones answers nearly always that nothing needs to be counted.
        """
        have = _open_files()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft == resource.RLIM_INFINITY:
            soft = 1 << 20
        self._files = have + min(max(soft // _FD_SHARE, _FD_LEAST), _FD_MOST)
        numbers = [self._files - left for left in (0, 1, 2, 3)]
        # One whose number is taken already, by a library that moved it there, tells nothing.
        self._unused = [(number, select.POLLNVAL) for number in numbers if not _is_open(number)]
        self._probe = select.poll() if self._unused and have else None
        for number, _ in self._unused:
            self._probe.register(number, 0)

    def _leaks(self) -> bool:
        """Whether attempts have left too many descriptors open; what nobody holds is closed first."""
        gc.collect()
        return _open_files() >= self._files - 3

    def has_output(self) -> bool:
        """Whether the agent has not read yet what was written to stdout and stderr."""
        # Into a buffer that is there already: half the time of a new one for each question.
        _ioctl(self._log, _FIONREAD, self._unread, True)
        return self._unread != _NOTHING

    def _restore_folder(self) -> bool:
        """After a system call failed: the working directory may be gone, which is harmless; all else is not."""
        try:
            _dup2(self._log, 1)
            _chdir(self._cwd)
            return False
        except OSError:
            return True

    def _restore_handlers(self) -> bool:
        for number, handler in zip(_WATCHED_SIGNALS, self._handlers):
            if _getsignal(number) is handler:
                continue
            if handler is None:  # one that Python has not set, and cannot put back
                return True
            _setsignal(number, handler)
        return False

    def _restore_environ(self) -> None:
        environ = os.environ = self._environ
        # Through the mapping, so that C code sees it too.
        for key in [key for key in self._variables if key not in self._normal]:
            del environ[os.fsdecode(key)]
        for key, value in self._normal.items():
            if self._variables.get(key) != value:
                environ[os.fsdecode(key)] = os.fsdecode(value)
        self._variables.changed = False
        time.tzset()  # C code has a copy of TZ's meaning

    def flush(self) -> None:
        """Send what the streams hold, and put ours in their place."""
        if sys.stdout is not self.out or sys.stderr is not self.err or sys.stdin is not self._stdin:
            self._restore_streams()
        try:
            self.out.flush()
            self.err.flush()
        except BaseException:  # closed or detached by the function
            self._restore_streams()
        if self._c.fflush is not None:
            self._c.fflush(None)

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
        if self._c.waitpid is not None:
            while True:
                got = self._c.waitpid(-1, None, 1)  # 1 is WNOHANG
                if got <= 0:
                    return got == 0
        try:
            while True:
                if _waitpid(-1, 1)[0] == 0:
                    return True
        except ChildProcessError:
            return False


def _handlers() -> list[Any]:
    return list(map(_getsignal, _WATCHED_SIGNALS))


class _NoTraces:
    is_tracing = staticmethod(lambda: False)


def _rest() -> tuple[Any, ...]:
    """What is asked for together with patches, as it takes long to tell or is seldom changed."""
    return (
        list(map(_getsignal, _ALL_SIGNALS)),
        _sigmask(_signal.SIG_BLOCK, ()),
        _getitimer(_signal.ITIMER_VIRTUAL),
        _getitimer(_signal.ITIMER_PROF),
        _affinity(0),
        [ask() for ask in _uids],
        # Asked by putting it back: a signal would write into whatever has that descriptor by then.
        _wakeup(-1),
        gc.get_debug(),
        tuple(sys.get_asyncgen_hooks()),
        _module("tracemalloc", _NoTraces).is_tracing(),
    )


def _limits() -> list[tuple[int, int]]:
    return [_getrlimit(number) for number in _LIMITS]


def _names(module: Any) -> dict[str, Any]:
    # settle puts the hooks of sys back.
    loose = _LOOSE - {"excepthook"} if module is threading else _LOOSE
    return {name: value for name, value in module.__dict__.items() if name not in loose}


def _decimal_default() -> str:
    """What new contexts of decimal, and so those of other threads and functions, begin with."""
    default = getattr(_module("decimal"), "DefaultContext", None)
    return _DECIMAL if default is None else repr(default)


def _usable(stream: io.TextIOWrapper) -> bool:
    try:
        stream.flush()
    except BaseException:
        return False
    return True


def _open_files() -> int:
    """How many descriptors are open: 0 where that cannot be told, a great many when there is no room to look."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                return 1 << 30
    return 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def raise_fd(fd: int) -> int:
    """Move a descriptor out of the range that functions close or write to by number."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    base = 4096 if soft == resource.RLIM_INFINITY or soft > 8192 else max(soft - 32, 10)
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base)
    except OSError:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return high
