"""A client for tests of programs that use Treadle: no server, no threads, no waiting."""

from __future__ import annotations

import contextlib
import io
import traceback
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable

from . import _pickling, _results
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._retry import reported
from ._submit import Call
from ._version import __version__
from .client import Client
from .errors import InvalidRequest, NotFound
from .future import TaskFuture, mark_recorded


class LocalClient(Client):
    """A Client that executes inside this process: submit returns when the task is finished.

    Functions, arguments, results and exceptions are pickled and loaded as they would be on
    their way to a worker and back, so what a worker could not be sent fails here too. Options
    are recorded and have no effect; Go handlers are unknown. Not for use by several threads.
    """

    def __init__(self) -> None:
        backend = _LocalBackend(_pickling.loads)
        self._attach(backend, _pickling.loads)


@dataclass
class _Finished:
    task: pb.Task
    result: pb.TaskResult
    logs: str


@dataclass
class _LocalBackend:
    """The Backend that is this process."""

    load: _results.Loader
    functions: dict[str, tuple[pb.Function, Callable[..., Any]]] = field(default_factory=dict)
    tasks: dict[str, _Finished] = field(default_factory=dict)

    address = "in this process"
    nested = False

    def register(self, request: pb.RegisterFunctionRequest) -> pb.Function:
        form = "source" if request.source else "pickle"
        fn = _from_source(request.name, request.source) if request.source else self.load(request.payload)
        made = pb.Function(
            function_id=str(uuid.uuid4()),
            name=request.name,
            runtime="python",
            queue=request.queue or "default",
            form=form,
            python=request.python,
            payload_size=len(request.payload or request.source),
        )
        made.created_at.FromDatetime(datetime.now(timezone.utc))
        self.functions[made.function_id] = made, fn
        return made

    def get_function(self, function: str) -> pb.Function:
        return self._find(function)[0]

    def delete_function(self, function_id: str) -> None:
        if self.functions.pop(function_id, None) is None:
            raise NotFound(f"no function has the id {function_id}")

    def _find(self, function: str) -> tuple[pb.Function, Callable[..., Any]]:
        if function in self.functions:
            return self.functions[function]
        for found in reversed(self.functions.values()):
            if found[0].name == function:
                return found
        raise NotFound(f"no function is called {function!r}: register it first")

    def list_functions(self, page_token: str) -> pb.ListFunctionsResponse:
        return pb.ListFunctionsResponse(functions=[made for made, _ in reversed(self.functions.values())])

    def submit(self, call: Call) -> TaskFuture[Any]:
        future = self.prepare(call)
        self.send(call, future)
        return future

    def prepare(self, call: Call) -> TaskFuture[Any]:
        return TaskFuture(self, call.request.function or call.label, call.label)

    def send(self, call: Call, future: TaskFuture[Any]) -> None:
        call.complete()
        request = call.request
        made, fn = self._find(request.function)
        task = pb.Task(
            task_id=str(uuid.uuid4()),
            function_id=made.function_id,
            function_name=made.name,
            queue=made.queue,
            runtime=made.runtime,
            worker="local",
            attempt_count=1,
            args_size=len(request.payload),
            options=request.options,
        )
        task.created_at.FromDatetime(datetime.now(timezone.utc))
        task.started_at.CopyFrom(task.created_at)
        result, logs = _run(fn, request.payload, task.task_id)
        task.finished_at.FromDatetime(datetime.now(timezone.utc))
        task.status, task.result_size = result.status, len(result.result_pickle)
        if result.HasField("error"):
            task.error.CopyFrom(result.error)
        self.tasks[task.task_id] = _Finished(task, result, logs)
        future.function = request.function
        self._deliver(task.task_id, future)

    def attach(self, task_id: str) -> TaskFuture[Any]:
        task = self._task(task_id).task
        future: TaskFuture[Any] = TaskFuture(self, task.function_id, task.function_name)
        self._deliver(task_id, future)
        return future

    def _deliver(self, task_id: str, future: TaskFuture[Any]) -> None:
        finished = self._task(task_id)
        mark_recorded([(future, task_id)])
        future._settle(_results.outcome(finished.result, self.load))

    def withdraw(self, future: TaskFuture[Any]) -> bool:
        return False

    def cancel_all(self, futures: Iterable[TaskFuture[Any]], only_queued: bool = False) -> None:
        pass  # every task is finished

    def cancel_later(self, future: TaskFuture[Any], only_queued: bool) -> None:
        pass

    def glance(self, task_id: str) -> pb.Task | None:
        return self._task(task_id).task

    def _task(self, task_id: str) -> _Finished:
        if task_id not in self.tasks:
            raise NotFound(f"no task has the id {task_id!r}")
        return self.tasks[task_id]

    def get_task(self, task_id: str) -> pb.Task:
        return self._task(task_id).task

    def get_result(self, task_id: str, timeout: float | None) -> pb.TaskResult:
        return self._task(task_id).result

    def cancel_task(self, task_id: str, only_queued: bool = False) -> pb.Task:
        return self._task(task_id).task

    def get_logs(self, task_id: str, attempt: int) -> pb.TaskLogs:
        return pb.TaskLogs(task_id=task_id, attempt=1, text=self._task(task_id).logs)

    def list_tasks(self, filter: str, page_size: int, page_token: str, full: bool) -> pb.ListTasksResponse:
        if filter:
            raise InvalidRequest("a LocalClient has no filters")
        newest = [finished.task for finished in reversed(self.tasks.values())]
        return pb.ListTasksResponse(tasks=newest[:page_size])

    def list_workers(self) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse()

    def list_queues(self) -> pb.ListQueuesResponse:
        return pb.ListQueuesResponse()

    def info(self) -> pb.ServerInfo:
        return pb.ServerInfo(version=__version__, durability="memory", max_payload=64 << 20)

    def close(self) -> None:
        pass


def _from_source(name: str, source: str) -> Callable[..., Any]:
    names: dict[str, Any] = {"__name__": "treadle_source"}
    try:
        exec(compile(source, f"<function {name}>", "exec"), names)
    except Exception as exc:
        raise InvalidRequest(f"the function's source does not run: {exc!r}") from exc
    if callable(names.get(name)):
        found: Callable[..., Any] = names[name]
        return found
    defined = [value for key, value in names.items() if callable(value) and key != "__builtins__"]
    if len(defined) != 1:
        raise InvalidRequest(f"the source defines nothing named {name!r}")
    only: Callable[..., Any] = defined[0]
    return only


def _run(fn: Callable[..., Any], payload: bytes, task_id: str) -> tuple[pb.TaskResult, str]:
    printed = io.StringIO()
    result = pb.TaskResult(task_id=task_id, status=pb.Task.FAILED)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            args, kwargs = _pickling.loads(payload)
            value = fn(*args, **kwargs)
        except BaseException as exc:  # sys.exit in a function ends the task, not the test
            result.error.CopyFrom(_raised(reported(exc), task_id))
            return result, printed.getvalue()
    try:
        result.result_pickle = _pickling.dump_value(value)
        result.status = pb.Task.COMPLETED
    except Exception as exc:
        result.error.CopyFrom(pb.TaskError(error_type="SerializationError", message=str(exc), task_id=task_id))
    return result, printed.getvalue()


def _raised(exc: BaseException, task_id: str) -> pb.TaskError:
    error = pb.TaskError(
        error_type="FunctionExecutionFailure",
        exception_type=type(exc).__qualname__,
        message=str(exc),
        traceback="".join(traceback.format_exception(type(exc), exc, exc.__traceback__)),
        task_id=task_id,
        worker_id="local",
    )
    if isinstance(exc, Exception):
        # What cannot be pickled arrives as TaskFailed.
        with contextlib.suppress(Exception):
            error.foreign_pickle = _pickling.dump_value(exc)
    return error
