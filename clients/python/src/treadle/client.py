"""The client."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Callable, Literal, Optional, Protocol, TypeVar, Union, overload

import grpc

from . import _mapping, _nested, _pickling, _results, _value
from ._address import DEFAULT_PORT
from ._backend import Backend
from ._connection import Connection, credentials
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._registry import Registration, Registry
from ._submit import Call
from ._target import Finder, Target, as_json
from ._typing import ParamSpec
from .errors import InvalidRequest
from .function import Function, function_of
from .future import TaskFuture
from .options import Options
from .records import Queue, ServerInfo, Status, Task, Worker, info_of, queue_of, task_of, worker_of

T = TypeVar("T")
P = ParamSpec("P")
C = TypeVar("C", bound="Client")

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"

Unpickle = Literal["trust", "safe"]


class Decorator(Protocol):
    """What register returns when it is given no function."""

    def __call__(self, fn: Callable[P, T], /) -> Function[P, T]:
        """Register the function."""


class Client:
    """A client of one Treadle server; any number of threads may use it.

    Making one does not connect: the first call does. Close it, or use it as a context
    manager. A client belongs to its process and does not survive os.fork.
    """

    _backend: Backend
    _load: _results.Loader
    _registry: Registry
    _defaults: Options

    def __init__(
        self,
        address: Optional[str] = None,
        *,
        token: Optional[str] = None,
        timeout: float = 30.0,
        unpickle: Unpickle = "trust",
        ca: Optional[str] = None,
        tls: Union[bool, grpc.ChannelCredentials, None] = None,
        insecure: bool = False,
    ) -> None:
        """Make a client of the server at address.

        address: "host:port", or a host alone for port 50051. Default: TREADLE_ADDRESS, else 127.0.0.1:50051.
            Raises ValueError for one that is malformed. In a running task a client that is told
            neither address nor token, ca or tls is one of the task's own dispatcher: it submits
            tasks, the children of this one, and reads and cancels them until the attempt ends.
        token: sent with every call. Default: TREADLE_TOKEN; "" sends none.
        timeout: how long, in seconds, a call goes on while no server answers before it raises
            Unavailable. It does not limit how long a task may take.
        unpickle: "trust" loads whatever a result's pickle names, which may run code: results come
            from your own workers. "safe" loads built-in values and nothing else.
        ca: file in PEM with the CA that signed the server's certificate, or "system" for the system's
            ones. Where it is set the client speaks TLS. Default: TREADLE_TLS_CA.
        tls: True speaks TLS with the system's certificates, or with ca; False does not, whatever
            TREADLE_TLS_CA says; grpc.ssl_channel_credentials(...) says everything itself.
            Default: ca decides, and without it plain text, as on loopback.
        insecure: allows a token to travel without TLS to an address that is not loopback.
        """
        address = address or os.environ.get("TREADLE_ADDRESS")
        if address is None and token is None and ca is None and tls is None and _nested.running():
            self._reach(timeout, unpickle)
            return
        address = address or DEFAULT_ADDRESS
        if token is None:
            token = os.environ.get("TREADLE_TOKEN", "").strip()
        if ca is None and tls is None:
            ca = os.environ.get("TREADLE_TLS_CA")
        load = _results.loader(unpickle)
        speaks = credentials(tls, ca)
        # Whose certificates these are is known unless the caller brought credentials.
        trusted = (ca or "system") if tls is True else ca if tls is None else None
        connection = Connection(
            address, token=token, timeout=timeout, tls=speaks, insecure=insecure, load=load, ca=trusted
        )
        self._connect(connection, load)

    def _reach(self, timeout: float, unpickle: Unpickle) -> None:
        """Be a client of the dispatcher of the task that runs."""
        load = _results.loader(unpickle)
        self._connect(Connection("", timeout=timeout, load=load, source=_nested.endpoint), load)

    def _connect(self, connection: Connection, load: _results.Loader) -> None:
        self._attach(connection, load)
        connection.forget_function = self._registry.forget

    def _attach(self, backend: Backend, load: _results.Loader) -> None:
        self._backend = backend
        self._load = load
        self._registry = Registry()
        self._defaults = Options()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._backend.address

    def close(self) -> None:
        """Send what is queued, then end.

        Futures that are not done fail with ClientClosed; their tasks go on, and a new client's
        future(task_id) waits for them.
        """
        self._backend.close()

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], exc: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """close, without standing in the way of an event loop; "async with client" does it at its end."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def __aenter__(self: C) -> C:
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], exc: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a Client belongs to its process; make one on the worker instead")

    def options(self: C, **choices: Any) -> C:
        """The same client, same connection, with other defaults for its tasks.

        client.options(priority=9, timeout=60).submit(fn); the names are those of Options.
        """
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._defaults = self._defaults.replace(**choices)
        return view

    # Functions.

    @overload
    def register(self, fn: Callable[P, T], name: Optional[str] = None, queue: str = "default") -> Function[P, T]: ...

    @overload
    def register(self, fn: None = None, name: Optional[str] = None, queue: str = "default") -> Decorator: ...

    def register(
        self, fn: Optional[Callable[..., Any]] = None, name: Optional[str] = None, queue: str = "default"
    ) -> Any:
        """Register a callable; also a decorator, with and without arguments.

        It is pickled by cloudpickle. Functions of __main__, lambdas and closures are sent by
        value, those of other modules by reference: workers have to be able to import these.
        The registration is a snapshot: what the function's globals are now is what it runs with.
        Registering the same bytes again returns the same registration. Waits for the server.
        Raises PicklingError when it cannot be sent.
        """
        if fn is None:
            return functools.partial(self.register, name=name, queue=queue)
        if isinstance(fn, Function):
            raise InvalidRequest(f"{fn!r} is registered already")
        payload = _pickling.dump_function(_value.with_own_name(fn, _is_function))
        name = name or _name_of(fn)
        request = pb.RegisterFunctionRequest(
            name=name,
            payload=payload,
            queue=queue,
            python=_pickling.python_of(payload),
            request_id=str(uuid.uuid4()),
        )
        made = self._registry.of_content("pickle", payload, name, queue, lambda: self._backend.register(request))
        return function_of(made.get(), self, fn)

    def register_source(self, name: str, source: str, queue: str = "default") -> Function[..., Any]:
        """Register Python source text that defines a callable called name, or only one function."""
        return function_of(self._source(name, source, queue).get(), self)

    def _source(self, name: str, source: str, queue: str, transient: bool = False) -> Registration:
        request = pb.RegisterFunctionRequest(
            name=name, source=source, queue=queue, request_id=str(uuid.uuid4()), transient=transient
        )
        content = source.encode("utf-8", "surrogatepass")
        form = "transient source" if transient else "source"
        return self._registry.of_content(form, content, name, queue, lambda: self._backend.register(request))

    def function(self, function: Union[str, uuid.UUID]) -> Function[..., Any]:
        """A registration by id, or the newest one of a name; raises NotFound."""
        return function_of(self._backend.get_function(str(function)), self)

    def functions(self) -> Iterator[Function[..., Any]]:
        """All registrations, newest first."""
        token = ""
        while True:
            page = self._backend.list_functions(token)
            for m in page.functions:
                yield function_of(m, self)
            token = page.next_page_token
            if not token:
                return

    def delete_function(self, function: Union[Function[..., Any], str, uuid.UUID]) -> None:
        """Delete a registration, given as it is or by id; its bytes go when no other has the same.

        Its name then means the newest one left of that name. Raises NotFound, and IllegalState while
        it has unfinished tasks.
        """
        id = function.id if isinstance(function, Function) else str(function)
        self._backend.delete_function(id)
        self._registry.forget(id)

    def _finder(self, fn: Callable[..., Any]) -> tuple[Finder, int]:
        """What finds or makes the registration of a callable that is submitted as it is; how many bytes it holds.

        What goes by reference is its name. All else is pickled now, and its bytes say whether it is
        known: its globals, defaults and what it closes over may have changed since.
        """
        name, reference = _name_of(fn), _value.goes_by_reference(fn)
        payload = b"" if reference else _pickling.dump_function(fn)

        def find() -> Registration:
            data = payload or _pickling.dump_function(fn)
            # What the program registered by itself stays; the rest goes when nobody uses it.
            form = "pickle" if self._registry.has_content("pickle", data, name, "default") else "transient"
            return self._registry.of_content(form, data, name, "default", lambda: register(data))

        def register(data: bytes) -> pb.Function:
            return self._backend.register(
                pb.RegisterFunctionRequest(
                    name=name,
                    payload=data,
                    python=_pickling.python_of(data),
                    request_id=str(uuid.uuid4()),  # for servers that do not know of transient ones
                    transient=True,
                )
            )

        if reference:
            return (lambda: self._registry.of_callable(fn, lambda: find().get())), 0
        return find, len(payload)

    def _target(self, fn: Any) -> Target:
        """What fn stands for; asks nobody."""
        if isinstance(fn, Function):
            return Target(fn.name, fn.runtime, fn.id)
        if isinstance(fn, (str, uuid.UUID)):
            text = str(fn)
            named = self._registry.of_name(text, lambda: self._backend.get_function(text))
            return Target(text, named.known.runtime if named.known else "", text, named)
        if isinstance(fn, (TaskFuture, Client)) or not callable(fn):
            raise InvalidRequest(f"{fn!r} is no function: want a callable, a Function, an id or a name")
        find, size = self._finder(fn)
        made = find()
        known = made.known
        return Target(_name_of(fn), "python", known.function_id if known else "", made, find, 0 if known else size)

    # Tasks.

    @overload
    def submit(self, fn: Callable[..., T], /, *args: Any, options: Options, **kwargs: Any) -> TaskFuture[T]: ...

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

    @overload
    def submit(self, fn: Union[str, uuid.UUID], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]: ...

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Execute a function with these arguments and return the future of its task at once.

        fn is a callable (registered where its bytes are new), a Function, an id or a name. A keyword
        options=treadle.Options(...) is not the function's but says how to execute. What many
        threads submit travels together. The task is recorded when future.task_id is there; it
        then runs whatever happens to this process.

        Arguments travel by pickle; as JSON to functions that are not Python.
        """
        return self._submit(fn, args, kwargs)

    def _submit(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        return self._start(self._target(fn), args, kwargs)

    def _start(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        return self._backend.submit(self._call(target, args, kwargs))

    def _call(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        options = self._defaults
        if isinstance(kwargs.get("options"), Options):
            options = kwargs.pop("options").over(options)
        request = pb.ExecuteRequest(function=target.id, options=options.to_proto(), request_id=str(uuid.uuid4()))
        if target.runtime == "python":
            request.payload = _pickling.dump_args(args, kwargs)
        elif target.runtime:
            request.args, request.kwargs = as_json(list(args)), as_json(kwargs)
        return target.call(request, args, kwargs)

    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int = 1000,
        timeout: Optional[float] = None,
        options: Optional[Options] = None,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Union[str, uuid.UUID],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int = 1000,
        timeout: Optional[float] = None,
        options: Optional[Options] = None,
    ) -> Iterator[Any]: ...

    def map(
        self,
        fn: Any,
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int = 1000,
        timeout: Optional[float] = None,
        options: Optional[Options] = None,
    ) -> Iterator[Any]:
        """Execute fn for every item and yield the results in order, like concurrent.futures' map.

        At most buffersize tasks are under way; the iterables are read as far as that needs, so
        they may be endless. chunksize calls make one task: worth it when one takes far less
        than a millisecond. timeout counts from now, in seconds. The first failure is raised
        where its result would have come; what is then under way is cancelled.
        """
        if not iterables:
            raise TypeError("map needs at least one iterable")
        if chunksize < 1 or buffersize < 1:
            raise ValueError("chunksize and buffersize must be at least 1")
        client = self if options is None else self.options(**vars(options.over(self._defaults)))
        calls: Iterator[tuple[Any, ...]] = zip(*iterables)
        if chunksize == 1:
            target = client._target(fn)
            return _mapping.ordered(
                client._backend, lambda args: client._start(target, args, {}), calls, buffersize, timeout
            )
        return client._map_chunks(fn, calls, chunksize, buffersize, timeout)

    def _map_chunks(
        self, fn: Any, calls: Iterator[tuple[Any, ...]], size: int, buffersize: int, timeout: Optional[float]
    ) -> Iterator[Any]:
        target, function = self._chunk_target(fn)
        lists = _mapping.ordered(
            self._backend,
            lambda args: self._start(target, (function, args[0]), {}),
            ((chunk,) for chunk in _mapping.chunks(calls, size)),
            buffersize,
            timeout,
        )
        return _mapping.flat(lists)

    def _chunk_target(self, fn: Any) -> tuple[Target, Any]:
        """What runs a list of calls of fn, and the function that it takes."""
        function, queue = (fn.callable, fn.queue) if isinstance(fn, Function) else (fn, "default")
        if function is None or isinstance(function, (str, uuid.UUID)):
            raise InvalidRequest("chunksize needs the function itself, as a chunk's task carries it")
        name = f"{_name_of(function)} (chunks)"[:256]

        def find() -> Registration:
            return self._source(name, _mapping.CHUNK_SOURCE, queue, transient=True)

        made = find()
        return Target(name, "python", made.known.function_id if made.known else "", made, find), function

    def future(self, task_id: str) -> TaskFuture[Any]:
        """A future of a task that is recorded, for example by another process; raises NotFound."""
        return self._backend.attach(task_id)

    def status(self, task_id: str) -> Status:
        """A task's status; raises NotFound."""
        return Status.of(self._backend.get_task(task_id).status)

    def task(self, task_id: str) -> Task:
        """A task's record: status, times, attempts, error; raises NotFound."""
        return task_of(self._backend.get_task(task_id))

    def result(self, task_id: str, timeout: Optional[float] = None) -> Any:
        """Wait for a task and return its value or raise its exception, as TaskFuture.result does.

        Raises concurrent.futures.TimeoutError after timeout seconds (0: do not wait).
        """
        return _results.outcome(self._backend.get_result(task_id, timeout), self._load).get()

    def cancel(self, task_id: str, *, only_queued: bool = False) -> bool:
        """Cancel a task, also while it runs; with only_queued not once it has started.

        False when it had finished before, or goes on. Raises NotFound.
        """
        return Status.of(self._backend.cancel_task(task_id, only_queued).status) is Status.CANCELLED

    def logs(self, task_id: str, attempt: int = 0) -> str:
        """What an attempt (0: the latest) has printed, the last 64 KiB; raises NotFound."""
        return self._backend.get_logs(task_id, attempt).text

    def tasks(self, filter: str = "", limit: Optional[int] = None, *, full: bool = False) -> Iterator[Task]:
        """Tasks, newest first, at most limit of them.

        Their errors have no traceback and at most 1 KiB of the message, unless full asks for all
        of it; task() always has it.

        filter is for example 'status = FAILED AND function = "double"': status, function,
        parent and worker with =, create_time with < and >, joined by AND.
        """
        token, left = "", limit
        while left is None or left > 0:
            page = self._backend.list_tasks(filter, 1000 if left is None else min(left, 1000), token, full)
            for m in page.tasks:
                yield task_of(m)
            if left is not None:
                left -= len(page.tasks)
            token = page.next_page_token
            if not token:
                return

    # The fabric.

    def workers(self) -> list[Worker]:
        """The workers that are attached now."""
        return [worker_of(m) for m in self._backend.list_workers().workers]

    def queues(self) -> list[Queue]:
        """The queues that have unfinished tasks."""
        return [queue_of(m) for m in self._backend.list_queues().queues]

    def info(self) -> ServerInfo:
        """Version, durability and limits of the server."""
        return info_of(self._backend.info())


def _is_function(found: Any) -> bool:
    """Whether a name stands for a registration, of the same function as it was before."""
    return isinstance(found, Function)


def _name_of(fn: Any) -> str:
    name = getattr(fn, "__name__", None)
    if not isinstance(name, str) or not name:
        # A partial or a callable object.
        name = getattr(getattr(fn, "func", None), "__name__", None) or type(fn).__name__
    return str(name)[:256]
