"""A FabricService in this process, over real gRPC, that does what a test tells it."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import grpc
from treadle import _status
from treadle._gen.treadle.v1 import fabric_pb2 as pb
from treadle._gen.treadle.v1 import fabric_pb2_grpc

TERMINAL = (pb.Task.COMPLETED, pb.Task.FAILED, pb.Task.CANCELLED)


class Fault:
    """An error that a method answers with instead, or after it has done its work."""

    def __init__(self, code: grpc.StatusCode, message: str = "", reason: str = "", late: bool = False) -> None:
        self.code = code
        self.message = message
        self.reason = reason
        self.late = late

    def abort(self, context: grpc.ServicerContext) -> None:
        if self.reason:
            info = _status._ErrorInfo(reason=self.reason).SerializeToString()
            detail = {"type_url": "type.googleapis.com/google.rpc.ErrorInfo", "value": info}
            data = _status._Status(details=[detail]).SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", data),))
        context.abort(self.code, self.message)


class FakeFabric(fabric_pb2_grpc.FabricServiceServicer):
    """Records what is asked; runs tasks at once while auto is set, else waits for finish."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.auto = True
        self.functions: dict[str, pb.RegisterFunctionRequest] = {}
        self.runtimes: dict[str, str] = {}
        self.by_request: dict[str, str] = {}
        self.requests: dict[str, pb.ExecuteRequest] = {}
        self.results: dict[str, pb.TaskResult] = {}
        self.batches: list[int] = []
        self.cancelled: list[str] = []
        self.streams: list[list[str]] = []
        self.open_streams = 0
        self.most_streams = 0
        self.metadata: dict[str, Any] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.gates: dict[str, threading.Event] = {}
        self.arrived: dict[str, threading.Event] = {}
        self._server: Optional[grpc.Server] = None
        self.address = ""

    # For tests.

    def start(self, address: str = "127.0.0.1:0") -> str:
        """Serve, and return the address."""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64), options=[("grpc.so_reuseport", 0)])
        fabric_pb2_grpc.add_FabricServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self.address

    def stop(self) -> None:
        """Drop all connections at once, as a killed server does; what was recorded stays."""
        if self._server is not None:
            for gate in self.gates.values():
                gate.set()
            self._server.stop(None).wait()
            self._server = None

    def hold(self, method: str) -> threading.Event:
        """Calls of that method wait until the returned event is set."""
        self.arrived[method] = threading.Event()
        self.gates[method] = threading.Event()
        return self.gates[method]

    def fail(self, method: str, *faults: Fault) -> None:
        """The next calls of that method fail, in this order."""
        with self.changed:
            self.faults.setdefault(method, []).extend(faults)

    def finish(self, task_id: str, value: Any) -> None:
        """Complete a task."""
        self.end(task_id, status=pb.Task.COMPLETED, result_pickle=pickle.dumps(value))

    def end(self, task_id: str, **fields: Any) -> None:
        """End a task, unless it has ended."""
        with self.changed:
            if self.results[task_id].status not in TERMINAL:
                self.results[task_id] = pb.TaskResult(task_id=task_id, **fields)
                self.changed.notify_all()

    def wait_for(self, what: Any, timeout: float = 20.0) -> None:
        """Wait until what() holds; it is looked at whenever something changed."""
        with self.changed:
            assert self.changed.wait_for(what, timeout), "it did not happen in time"

    # What all methods do first and last.

    def _enter(self, method: str, context: grpc.ServicerContext) -> Optional[Fault]:
        self.metadata = dict(context.invocation_metadata())
        if method in self.gates:
            self.arrived[method].set()
            assert self.gates[method].wait(30)
        with self.changed:
            waiting = self.faults.get(method)
            fault = waiting.pop(0) if waiting else None
        if fault is not None and not fault.late:
            fault.abort(context)
        return fault

    # The service.

    def RegisterFunction(self, request: Any, context: Any) -> Any:
        fault = self._enter("RegisterFunction", context)
        with self.changed:
            id = self.by_request.setdefault(request.request_id, str(uuid.uuid4()))
            self.functions[id] = request
            self.changed.notify_all()
        if fault is not None:
            fault.abort(context)
        return self._function(id)

    def _function(self, id: str) -> pb.Function:
        request = self.functions[id]
        return pb.Function(
            function_id=id, name=request.name, runtime=self.runtimes.get(id, "python"), queue=request.queue or "default"
        )

    def DeleteFunction(self, request: Any, context: Any) -> Any:
        self._enter("DeleteFunction", context)
        with self.changed:
            known = self.functions.pop(request.function_id, None)
        if known is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such function")
        return pb.DeleteFunctionResponse()

    def GetFunction(self, request: Any, context: Any) -> Any:
        self._enter("GetFunction", context)
        for id in reversed(self.functions):
            if request.function in (id, self.functions[id].name):
                return self._function(id)
        context.abort(grpc.StatusCode.NOT_FOUND, "no such function")

    def ExecuteBatch(self, request: Any, context: Any) -> Any:
        fault = self._enter("ExecuteBatch", context)
        answer = pb.ExecuteBatchResponse()
        with self.changed:
            self.batches.append(len(request.requests))
            for item in request.requests:
                answer.items.append(self._record(item))
            self.changed.notify_all()
        if fault is not None:
            fault.abort(context)
        return answer

    def _record(self, request: pb.ExecuteRequest) -> pb.ExecuteBatchItem:
        if request.function not in self.functions:
            found = [id for id, f in self.functions.items() if f.name == request.function]
            if not found:
                error = pb.ItemError(code=5, reason="NOT_FOUND", message="no such function")
                return pb.ExecuteBatchItem(error=error)
        if request.options.priority > 9:
            error = pb.ItemError(code=3, reason="INVALID_REQUEST", message="options.priority is too high")
            return pb.ExecuteBatchItem(error=error)
        known = self.by_request.get(request.request_id)
        if known is not None:
            return pb.ExecuteBatchItem(task_id=known)
        id = self.by_request[request.request_id] = str(uuid.uuid4())
        self.requests[id] = request
        self.results[id] = pb.TaskResult(task_id=id, status=pb.Task.QUEUED)
        if self.auto:
            self.results[id] = self._run(id, request)
        return pb.ExecuteBatchItem(task_id=id)

    def _run(self, id: str, request: pb.ExecuteRequest) -> pb.TaskResult:
        named = [f for id, f in self.functions.items() if request.function in (id, f.name)]
        function = named[-1]
        if function.source:
            names: dict[str, Any] = {}
            exec(function.source, names)
            fn = names["run"]
        else:
            fn = pickle.loads(function.payload)
        args, kwargs = pickle.loads(request.payload)
        try:
            value = pickle.dumps(fn(*args, **kwargs))
        except Exception as exc:
            error = pb.TaskError(
                task_id=id,
                error_type="FunctionExecutionFailure",
                exception_type=type(exc).__name__,
                traceback="Traceback: of the task",
                foreign_pickle=pickle.dumps(exc),
            )
            return pb.TaskResult(task_id=id, status=pb.Task.FAILED, error=error)
        return pb.TaskResult(task_id=id, status=pb.Task.COMPLETED, result_pickle=value)

    def GetTask(self, request: Any, context: Any) -> Any:
        self._enter("GetTask", context)
        return self._task(request.task_id.lower(), context)

    def _task(self, id: str, context: Any) -> Any:
        with self.changed:
            if id not in self.results:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no task has the id {id}")
            return pb.Task(task_id=id, status=self.results[id].status)

    def GetResult(self, request: Any, context: Any) -> Any:
        self._enter("GetResult", context)
        id = request.task_id.lower()
        with self.changed:
            if id not in self.results:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no task has the id {id}")
            wait = request.wait.ToNanoseconds() / 1e9
            self.changed.wait_for(lambda: self.results[id].status in TERMINAL or not context.is_active(), wait)
            return self.results[id]

    def AwaitResults(self, request: Any, context: Any) -> Iterator[Any]:
        fault = self._enter("AwaitResults", context)
        context.add_callback(self._wake)
        with self.changed:
            self.streams.append(list(request.task_ids))
            self.open_streams += 1
            self.most_streams = max(self.most_streams, self.open_streams)
            self.changed.notify_all()
        try:
            yield from self._results(list(request.task_ids), fault, context)
        finally:
            with self.changed:
                self.open_streams -= 1
                self.changed.notify_all()

    def _results(self, ids: list[str], fault: Optional[Fault], context: Any) -> Iterator[Any]:
        left = dict.fromkeys(ids)
        while left and context.is_active():
            with self.changed:
                unknown = [id for id in left if id not in self.results]
                if unknown:
                    context.abort(grpc.StatusCode.NOT_FOUND, f"no task has the id {unknown[0]}")
                ready = [id for id in left if self.results[id].status in TERMINAL]
                if not ready:
                    self.changed.wait(30)
                    continue
                answers = [self.results[id] for id in ready]
            for id in ready:
                del left[id]
            if fault is not None:
                yield pb.AwaitResultsResponse(results=answers[:1])
                fault.abort(context)
            yield pb.AwaitResultsResponse(results=answers)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def CancelTask(self, request: Any, context: Any) -> Any:
        self._enter("CancelTask", context)
        with self.changed:
            if request.only_queued and self.results[request.task_id].status == pb.Task.RUNNING:
                return self._task(request.task_id, context)
            self.cancelled.append(request.task_id)
        error = pb.TaskError(error_type="Cancelled", message="the task was cancelled by a client")
        self.end(request.task_id, status=pb.Task.CANCELLED, error=error)
        return self._task(request.task_id, context)

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self._enter("GetServerInfo", context)
        return pb.ServerInfo(version="fake", durability="memory", max_payload=64 << 20)

    def ListTasks(self, request: Any, context: Any) -> Any:
        self._enter("ListTasks", context)
        ids = sorted(self.results)
        start = int(request.page_token or 0)
        page = ids[start : start + request.page_size]
        token = str(start + len(page)) if start + len(page) < len(ids) else ""
        tasks = [pb.Task(task_id=id, status=self.results[id].status) for id in page]
        return pb.ListTasksResponse(tasks=tasks, next_page_token=token)
