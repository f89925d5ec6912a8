"""Settings of the interpreter that an attempt may change to another one's harm.

They belong to the function that changes them. What its source or its imports set while it
is loaded is in force during its own attempts; what an attempt sets ends with it. Everybody
else finds them as a fresh process has them. The question whether something was changed is on
the path of every attempt, so it is one comparison of a tuple; the answers to it are not.

Context variables, and with them the context of decimal, need no question: each attempt
runs in a copy of its function's context.
"""

from __future__ import annotations

import _locale  # type: ignore[import-not-found,unused-ignore]
import _thread
import contextvars
import gc
import importlib
import sys
import warnings
from typing import Any, Callable

_signal: Any = importlib.import_module("_signal")

# Bound at start: user code may replace what the modules hold.
_module = sys.modules.get
_limit = sys.__dict__.get  # getattr takes 2 microseconds for what a module does not have
_gc_on, _gc_enable, _gc_disable = gc.isenabled, gc.enable, gc.disable
_switch, _set_switch = sys.getswitchinterval, sys.setswitchinterval
_stack = _thread.stack_size
_wakeup = _signal.set_wakeup_fd
_setlocale, _ALL = _locale.setlocale, _locale.LC_ALL
# Python refuses to print or to read integers of more digits than that.
_digits: Callable[[], int] = getattr(sys, "get_int_max_str_digits", lambda: 0)
_set_digits: Callable[[int], None] = getattr(sys, "set_int_max_str_digits", lambda _: None)

# To ask for all of the locale takes longer than everything else here together: so who changes
# it by Python's function is noted.
_locale_now = ""


def _note_locale(category: int, locale: str | None = None) -> Any:
    """Query or set the locale; ``_locale.setlocale`` that remembers what it did."""
    global _locale_now
    try:
        return _setlocale(category) if locale is None else _setlocale(category, locale)
    finally:
        if locale is not None:
            _locale_now = _setlocale(_ALL)


def _watch_locale() -> None:
    global _locale_now
    _locale_now = _setlocale(_ALL)
    _locale.setlocale = _note_locale
    module: Any = _module("locale")
    if module is not None:
        module._setlocale = _note_locale


_HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


class _Absent:
    """What a module that nobody has imported holds."""

    manager = root = _default_context = None
    disable, level, handlers, filters = 0, 30, [], []  # type: ignore[var-annotated]
    tempdir = None
    _event_loop_policy = _actual_context = _opener = None
    getdefaulttimeout = staticmethod(lambda: None)


_Absent.root = _Absent.manager = _Absent._default_context = _Absent  # type: ignore[assignment]


def now() -> tuple[Any, ...]:
    """The settings as they are; the lists among them are the living ones."""
    logging: Any = _module("logging", _Absent)
    root = logging.root
    multiprocessing: Any = _module("multiprocessing.context", _Absent)
    return (
        _gc_on(),
        _switch(),
        _digits(),
        _stack(),
        _locale_now,
        sys.excepthook,
        sys.displayhook,
        sys.unraisablehook,
        sys.breakpointhook,
        warnings.filters,
        warnings.showwarning,
        root.manager.disable,
        root.level,
        root.handlers,
        root.filters,
        _module("_socket", _Absent).getdefaulttimeout(),
        _module("tempfile", _Absent).tempdir,
        _module("asyncio.events", _Absent)._event_loop_policy,
        _limit("tracebacklimit"),
        multiprocessing._default_context._actual_context,
        _module("urllib.request", _Absent)._opener,
    )


# Where the folder for temporary files stands among them.
_TEMPDIR = 16


def snapshot() -> tuple[Any, ...]:
    """The settings as they are, for comparison and for ``put``."""
    return tuple(list(value) if isinstance(value, list) else value for value in now())


class Settings:
    """What a fresh process has."""

    def __init__(self) -> None:
        _watch_locale()
        self.fresh = snapshot()
        self._filters: Any = warnings.filters
        self._hooks = {name: getattr(sys, name) for name in _HOOKS}

    def settle(self) -> None:
        """Put back what an attempt changed."""
        if now() != self.fresh:
            self._tempdir()
            self.put(self.fresh)

    def own(self) -> tuple[Any, ...] | None:
        """What the load of a function has set, or None where it set nothing."""
        if now() == self.fresh:
            return None
        self._tempdir()
        found = snapshot()
        return None if found == self.fresh else found

    def put(self, want: tuple[Any, ...]) -> None:
        """Put a snapshot in force."""
        (enabled, switch, digits, stack, locale, *hooks) = want[:9]
        (filters, show, disable, level, handlers, root_filters, timeout, tempdir, policy) = want[9:18]
        (traceback_limit, start_method, opener) = want[18:]
        (_gc_enable if enabled else _gc_disable)()
        _set_switch(switch)
        _set_digits(digits)
        _stack(stack)
        if _locale_now != locale:
            _note_locale(_ALL, locale)
        for name, hook in zip(_HOOKS, hooks):
            setattr(sys, name, hook)
        if warnings.filters is not self._filters or self._filters != filters:
            warnings.filters = self._filters  # C code knows this list
            self._filters[:] = filters
            _filters_changed()
        warnings.showwarning = show
        logging: Any = _module("logging")
        if logging is not None:
            if show is not getattr(logging, "_showwarning", None):
                logging._warnings_showwarning = None  # captureWarnings is off
            if logging.root.manager.disable != disable:
                logging.disable(disable)
            if logging.root.level != level:
                logging.root.setLevel(level)
            logging.root.handlers[:] = handlers
            logging.root.filters[:] = root_filters
        socket: Any = _module("_socket")
        if socket is not None:
            socket.setdefaulttimeout(timeout)
        tempfile: Any = _module("tempfile")
        if tempfile is not None:
            tempfile.tempdir = tempdir
        events: Any = _module("asyncio.events")
        if events is not None:
            _renew_loop(events, policy)
        if traceback_limit is not None:
            sys.tracebacklimit = traceback_limit
        elif hasattr(sys, "tracebacklimit"):
            del sys.tracebacklimit
        multiprocessing: Any = _module("multiprocessing.context")
        if multiprocessing is not None:
            # set_start_method raises at its second call, which would be that of another attempt.
            multiprocessing._default_context._actual_context = start_method
        request: Any = _module("urllib.request")
        if request is not None:
            request._opener = opener

    def _tempdir(self) -> None:
        """Learn the folder for temporary files when the first attempt has asked for it."""
        tempfile: Any = _module("tempfile")
        if tempfile is not None and tempfile.tempdir is not None and self.fresh[_TEMPDIR] is None:
            tempfile.tempdir = None
            self.fresh = (*self.fresh[:_TEMPDIR], tempfile.gettempdir(), *self.fresh[_TEMPDIR + 1 :])


def _filters_changed() -> None:
    """Have the interpreter forget what it has decided by the former filters."""
    tell: Any = getattr(warnings, "_filters_mutated", None)
    if tell is not None:
        tell()
        return
    with warnings._lock:  # type: ignore[attr-defined]
        warnings._filters_mutated_lock_held()  # type: ignore[attr-defined]


def _renew_loop(events: Any, policy: Any) -> None:
    """No running loop, no loop in use, and none said to be unwanted: as in a process that just began."""
    events._set_running_loop(None)
    _wakeup(-1)
    events._event_loop_policy = policy
    if policy is not None and hasattr(policy, "_local"):
        policy._local = type(policy._local)()


class Context:
    """The context variables of one function: what its load has set."""

    def __init__(self) -> None:
        self.context = contextvars.Context()
        self._decimal: Any = None

    def loaded(self) -> None:
        """Called when the function has been loaded, in no context."""
        for variable, value in self.context.items():
            if variable.name == "decimal_context":
                self._decimal = value

    def fresh(self) -> contextvars.Context:
        """A copy for one attempt."""
        context = self.context.copy()
        if self._decimal is not None:
            # The one context that is changed in place.
            context.run(sys.modules["decimal"].setcontext, self._decimal.copy())
        return context
