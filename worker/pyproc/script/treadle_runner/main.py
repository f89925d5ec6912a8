"""Start-up and the loop of a runner."""

from __future__ import annotations

import _thread
import builtins
import faulthandler
import gc
import json
import os
import re
import signal
import sys
import time
import types
from typing import Any, Callable

from . import about, children, failures, functions, limits, pickling, retry, settings, state, values, wire

# As in wire.py: the loop goes on whatever a function puts into builtins.
__builtins__ = dict(vars(builtins))

# Exit codes that the agent explains to people; see protocol.go.
EXIT_WIRE = 97
EXIT_BROKEN = 98

# How often a function is looked at closely before it is taken for one that patches nothing; an
# attempt of more nanoseconds is looked at in any case, as that is a fiftieth of its time.
_WATCHED_RUNS = 3
_WATCHED_TIME = 5_000_000
# Descriptors are counted after an attempt that took so many nanoseconds, in which some 25 files can
# be opened, and otherwise after each eighth: the question costs a fiftieth of a short attempt.
_FILES_TIME = 50_000
_FILES_MASK = 7

_exit, _getpid, _now = os._exit, os.getpid, time.perf_counter_ns
_COROUTINE, _type = types.CoroutineType, type


def run() -> None:
    """Be a runner until the agent closes the pipe or kills the process."""
    real_main = sys.modules["__main__"]
    # Functions pickled by dill in a script live in the globals of __main__: theirs to
    # write to, so it must not be this program's. The old module is kept alive by its name here.
    main = children.Main(Runner._call.__code__, _thread.get_ident())
    sys.modules["__main__"] = main.module
    sys.argv = [""]
    try:
        runner = Runner()
        main.is_asked = lambda: runner._in_function
        runner.serve()
    except (wire.WireError, OSError) as exc:
        _last_words(exc)
        _exit(EXIT_WIRE)
    except BaseException as exc:
        _last_words(exc)
        _exit(EXIT_BROKEN)
    finally:
        del real_main


def _hide() -> None:
    """Keep the runner's modules from functions: who patches them would change the attempts of others."""
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def _last_words(exc: BaseException) -> None:
    try:
        os.write(2, f"treadle runner: {failures.one_line(exc)}\n".encode("utf-8", "replace"))
    except OSError:
        pass


class Runner:
    """One process, one attempt at a time."""

    def __init__(self) -> None:
        self._pid = _getpid()
        self._in_function = False
        self._reply_flags = 0
        self._watch = True
        self._ahead = 0
        self._attempts = 0
        life = state.raise_fd(5)
        self._wire = wire.Wire(state.raise_fd(3), state.raise_fd(4), state.raise_fd(6))
        ask, answers = state.raise_fd(7), state.raise_fd(8)
        _die_with_agent(life)
        # A forked child must not hold them: their closing tells the agent of this process's end.
        fds = (self._wire.fd_in, self._wire.fd_out, self._wire.fd_leave, life, ask, answers)
        os.register_at_fork(after_in_child=lambda: _close_all(fds))
        signal.signal(signal.SIGINT, self._interrupt)
        kind, seq, body = self._wire.receive()
        if kind != wire.KIND_SETUP:
            raise wire.WireError("the first frame is not the set-up")
        config = json.loads(bytes(body))
        self._most = config.get("max_attempts", 0)
        hello = _set_up(config)
        self._about = about.About(ask, answers)
        _hide()
        self._cache = functions.Cache()
        self._process = state.Process()
        faulthandler.enable(2, all_threads=False)
        gc.freeze()  # what is here now stays: no collection needs to look at it
        self._wire.send(seq, wire.KIND_HELLO, json.dumps(hello).encode())

    def _interrupt(self, _number: int, _frame: types.FrameType | None) -> None:
        # Between attempts an interrupt would tear a frame apart; nobody is there to want it.
        if self._in_function:
            raise KeyboardInterrupt

    def serve(self) -> None:
        """Answer calls; returns never."""
        receive, send, settle = self._wire.receive, self._wire.send, self._settle
        most = self._most
        while True:
            kind, seq, body = receive()
            if kind != wire.KIND_CALL:
                raise wire.WireError(f"unexpected frame of kind {kind}")
            begun = _now()
            reply = self._attempt(body)
            took = _now() - begun
            flags = self._reply_flags
            if settle(took):
                flags |= wire.REPLY_RECYCLE
            elif self._ahead and self._process.has_output():
                flags |= wire.REPLY_OUTPUT
            del body
            if self._attempts == most:
                flags |= wire.REPLY_RECYCLE | wire.REPLY_SPENT
            send(seq, wire.KIND_REPLY, reply.head(flags, took), reply.result)
            del reply
            if flags > wire.REPLY_CACHED:
                self._wire.await_leave()

    def _settle(self, took: int) -> bool:
        try:
            self._attempts += 1
            watch = self._watch or took > _WATCHED_TIME
            worn = self._process.settle(watch or took > _FILES_TIME or not self._attempts & _FILES_MASK)
            return worn or (watch and self._process.patched())
        except BaseException:  # a name that is needed here is gone
            return True

    def _attempt(self, body: memoryview) -> wire.Reply:
        form, flags, name_len, code_len, memory, max_result, task, digest = wire.CALL.unpack_from(body)
        self._ahead = flags & wire.CALL_AHEAD
        at = wire.CALL_SIZE
        name, code, args = at, at + name_len, at + name_len + code_len
        limit = limits.AddressSpace(memory) if flags & wire.CALL_RLIMIT else None
        self._reply_flags = 0
        self._watch = True
        self._about.tell((task, body, name_len))
        try:
            entry = self._cache.get(digest)
            if entry is None and not flags & wire.CALL_HAS_CODE:
                return wire.Reply(wire.END_MISSING)
            if limit is not None:
                limit.impose()
            if entry is None:
                text = bytes(body[name:code]).decode("utf-8", "replace")
                entry = self._load(form, text, digest, bytes(body[code:args]))
            self._reply_flags = wire.REPLY_CACHED
            self._watch = entry.runs < _WATCHED_RUNS
            entry.runs += 1
            if entry.own is not None:
                self._process.settings.put(entry.own)
            origin = pickling.origin = entry.origin
            data = body[args:]
            if not flags & wire.CALL_ARGS_JSON:
                origin.args = data
            return entry.context.fresh().run(self._call, entry.fn, data, flags, max_result, task, limit)
        except functions.UnreadableError as exc:
            return _unreadable(exc)
        except MemoryError as exc:
            return self._out_of_memory(exc, limit)
        except BaseException as exc:  # from a signal handler of the function, or its like
            told, word = retry.word_of(exc)
            return _raised(told, task, word)
        finally:
            self._in_function = False
            self._about.forget()
            pickling.origin.args = b""
            if limit is not None:
                limit.lift()

    def _load(self, form: int, name: str, digest: bytes, code: bytes) -> functions.Entry:
        context = settings.Context()
        pickling.origin = pickling.NOBODY
        self._in_function = True
        try:
            fn = context.context.run(functions.load, form, name, digest, code)
        finally:
            self._in_function = False
            self._leave_if_forked()
        context.loaded()
        self._process.note()
        entry = functions.Entry(fn, len(code), pickling.Origin(code, form == wire.FORM_SOURCE, fn), context)
        entry.own = self._process.settings.own()
        self._cache.put(digest, entry)
        return entry

    def _call(
        self,
        fn: Callable[..., Any],
        data: memoryview,
        flags: int,
        max_result: int,
        task: bytes,
        limit: limits.AddressSpace | None,
    ) -> wire.Reply:
        # In a copy of the function's context.
        args, kwargs = values.decode_args(data, bool(flags & wire.CALL_ARGS_JSON))
        try:
            self._in_function = True
            value = fn(*args, **kwargs)
            if _type(value) is _COROUTINE:
                value = _run_coroutine(value)
            self._in_function = False
        except BaseException as exc:  # whatever a function raises is its outcome
            self._in_function = False
            self._leave_if_forked(exc)
            if limit is not None and limits.ran_out(exc):
                raise
            told, word = retry.word_of(exc)
            if failures.lacks_files(told):
                self._reply_flags |= wire.REPLY_RECYCLE
            # First of all: the function may have left a limit that not even formatting fits in.
            sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000))
            if told is not exc:
                failures.forget_frames(exc)
            return _raised(told, task, word)
        if _getpid() != self._pid:
            self._leave_if_forked()
        try:
            return values.encode_result(value, bool(flags & wire.CALL_RETURNS_JSON), max_result)
        except values.TooLargeError as exc:
            return wire.Reply(wire.END_EXHAUSTED, message=failures.clip(str(exc), failures.TEXT_LIMIT))

    def _leave_if_forked(self, exc: BaseException | None = None) -> None:
        """End a process that a function forked and that came back here: the answer is its parent's to give."""
        if _getpid() == self._pid:
            return
        if exc is not None and not isinstance(exc, SystemExit):
            sys.stderr.write(failures.traceback_text(exc))
        self._process.flush()
        _exit(0 if exc is None or (isinstance(exc, SystemExit) and not exc.code) else 1)

    def _out_of_memory(self, exc: MemoryError, limit: limits.AddressSpace | None) -> wire.Reply:
        if limit is None:
            # Decoding or encoding without a limit of ours: the machine itself has no more.
            text = "the worker's machine ran out of memory while it handled the attempt's payload or result"
        else:
            limit.lift()
            text = f"the attempt needed more memory than its limit of {limit.limit} bytes (RLIMIT_AS)"
        trace = failures.traceback_text(exc)
        failures.forget_frames(exc)
        return wire.Reply(
            wire.END_EXHAUSTED,
            label=b"MemoryError",
            message=failures.clip(text, failures.TEXT_LIMIT),
            traceback=failures.clip_tail(trace, failures.TEXT_LIMIT),
        )


def _raised(exc: BaseException, task: bytes, word: bytes) -> wire.Reply:
    try:
        told = failures.describe(exc, about.uuid_text(task))
    except MemoryError:
        raise
    except BaseException as broken:  # whatever an exception's own code does, the function raised it
        told = failures.describe(RuntimeError(f"{type(exc).__qualname__} (telling of it raised {broken!r})"), "")
    return wire.Reply(wire.END_RAISED, wire.ENCODING_PICKLE, word, *told)


def _unreadable(exc: functions.UnreadableError) -> wire.Reply:
    cause = exc.cause
    label = failures.clip(failures.class_name(cause), 1024) if cause is not None else b""
    trace = failures.clip_tail(failures.traceback_text(cause), failures.TEXT_LIMIT) if cause is not None else b""
    return wire.Reply(
        wire.END_UNREADABLE, label=label, message=failures.clip(str(exc), failures.TEXT_LIMIT), traceback=trace
    )


def _run_coroutine(value: Any) -> Any:
    return pickling.load("asyncio").run(value)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def _die_with_agent(life: int) -> None:
    """Have this process group killed when the agent closes the life pipe, which it does by dying.

    Linux sends the signal itself, whatever Python is doing. Elsewhere a thread waits for it.
    """
    import fcntl

    set_signal = getattr(fcntl, "F_SETSIG", None)
    if set_signal is not None and _getpid() == os.getpgrp():
        try:
            fcntl.fcntl(life, fcntl.F_SETOWN, -_getpid())
            fcntl.fcntl(life, set_signal, signal.SIGKILL)
            fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
            return
        except OSError:
            pass
    _thread.start_new_thread(_watch, (life,))


def _watch(life: int) -> None:
    import select

    poll = select.poll()
    poll.register(life, 0)  # a hang-up is always reported
    poll.poll()
    if os.getpgrp() == _getpid():
        os.killpg(0, signal.SIGKILL)
    _exit(EXIT_WIRE)


def _set_up(config: dict[str, Any]) -> dict[str, Any]:
    """Arrange sys.path and import what functions will need; returns what the agent wants to know."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    rest = [entry for entry in sys.path if entry not in ("", own)]
    libs = [config["libs"]] if config.get("libs") else []
    rest = [*libs, *rest] if config.get("libs_first") else [*rest, *libs]
    cwd, paths = os.getcwd(), config.get("paths", [])
    # dill's own imports should not meet a random.py of the working directory.
    sys.path[:] = [*paths, *rest]
    dill = _version("dill", load=True)
    sys.path[:] = [cwd, *paths, *rest]
    pickling.folder = cwd
    return {
        "pid": _getpid(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "dill": dill or _version("dill", load=True),
        "cloudpickle": _version("cloudpickle", load=False),
        "subreaper": state.adopt_orphans(),
    }


def _version(package: str, load: bool) -> str:
    """The version of an installed package, or empty. dill is imported now: the first task should not wait for it."""
    import importlib.util

    try:
        if load:
            return str(getattr(__import__(package), "__version__", "unknown"))
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return ""
        with open(spec.origin, encoding="utf-8") as file:
            found = re.search(r"^__version__ = ['\"](.+)['\"]", file.read(4096), re.MULTILINE)
        return found.group(1) if found else "unknown"
    except BaseException:  # a broken package is an absent one
        return ""
