"""A client's connection to a server: one gRPC channel, and what runs on it."""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any, Callable, Union

import grpc
import grpc.experimental

from . import _address, _await, _cancel, _nested, _status, _submit
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._gen.treadle.v1 import fabric_pb2_grpc
from ._results import Loader, Outcome, finished
from ._submit import Call
from ._version import __version__
from .errors import ClientClosed, TreadleError, Unauthenticated, Unavailable
from .future import TaskFuture, mark_recorded, mark_unwanted

log = logging.getLogger("treadle")

# The largest message that a server can be set to (--max-payload 900MiB): twice the payload, as some
# messages carry text forms of it, and room for the rest. The limit is the server's alone.
_MAX_MESSAGE = 2 * (900 << 20) + (1 << 20)
# How long one GetResult waits; the server's limit is 5 min.
_MAX_WAIT = 60.0
# A slow line gets this long for a mebibyte, beyond the client's timeout.
_SECONDS_PER_MIB = 1.0
# How long a running task tries a token that its dispatcher does not know: the dispatcher may
# have restarted, and the worker is back within a second or two.
_UNKNOWN_TOKEN = 5.0

Tls = Union[bool, grpc.ChannelCredentials]
# The word for the CAs of the system where the file of one is asked for.
_SYSTEM = "system"


class Connection:
    """The Backend that is a server, over gRPC."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        load: Loader,
        token: str | None = None,
        tls: Tls = False,
        insecure: bool = False,
        ca: str | None = None,
        source: Callable[[], _nested.Endpoint] | None = None,
    ) -> None:
        """source says where a running task finds its dispatcher, instead of address, token, tls and ca."""
        self._source = source
        self._endpoint = source() if source is not None else None
        if self._endpoint is not None:
            # The worker talks to it in plain text itself where it does.
            address, token, insecure = self._endpoint.address, self._endpoint.token, True
        address = _address.checked(address)
        if not (isinstance(timeout, (int, float)) and 0 <= timeout < math.inf):
            raise ValueError(f"timeout={timeout!r}: want seconds, 0 or more")
        for index, character in enumerate(token or ""):
            if not " " <= character <= "~":  # gRPC says "Invalid metadata", at the first call
                raise ValueError(
                    f"the token (token=, TREADLE_TOKEN) has a character at index {index} that no token has: "
                    "want it as 'treadle token create' printed it"
                )
        if token and tls is False and not insecure and not _address.is_loopback(address):
            raise ValueError(
                f"a token would travel to {address} without TLS, where others can read it: "
                "name the server's CA (ca=, TREADLE_TLS_CA), or allow it with insecure=True"
            )
        self._address = address
        self._ca = ca
        # Whether a server has ever answered: what is wrong before may be wrong for good.
        self._met = False
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._former: list[grpc.Channel] = []
        self._dialling = threading.Lock()
        self._channel = _dial(address, tls) if self._endpoint is None else _dial_nested(self._endpoint)
        self._stub = fabric_pb2_grpc.FabricServiceStub(self._channel)
        self._pid = os.getpid()
        # Set when calls in the background have to stop.
        self._ended = threading.Event()
        self._closing = threading.Lock()
        self._is_closed = False
        self.forget_function: Callable[[str], None] = lambda function: None
        """Told of functions that the server turned out not to know."""
        self._awaiter = _await.Awaiter(self._open_stream, self._known_task, load, timeout, self._passes)
        self._submitter = _submit.Submitter(self._send_batch, self._landed, lambda f: self.forget_function(f))
        self._canceller = _cancel.Canceller(self._cancel_window)
        _open.add(self)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._address

    def close(self) -> None:
        """Send what is queued, then end. May be called more than once."""
        if self._end():
            with self._dialling:
                for channel in (*self._former, self._channel):
                    channel.close()

    def _end(self) -> bool:
        """Close all but the channel; says whether that was left to do."""
        if os.getpid() != self._pid:
            return False  # inherited by os.fork: it is the parent's to close
        with self._closing:
            if self._is_closed:
                return False
            self._is_closed = True
        self._submitter.close(self._timeout)
        self._canceller.close(self._timeout)
        self._ended.set()
        self._submitter.fail()
        self._awaiter.close()
        return True

    @property
    def nested(self) -> bool:
        """Whether a running task uses it, by its own token."""
        return self._source is not None

    def _look_again(self) -> None:
        """Go to where the dispatcher of a running task is by now."""
        if self._source is None:
            return
        with self._dialling:
            try:
                found = self._source()
            except TreadleError as exc:
                log.debug("where the dispatcher is: %s", exc)
                return
            if found == self._endpoint or self._is_closed:
                return
            log.info("the dispatcher of this task is at %s now", found.address)
            # Calls may be under way on the former channel.
            self._former.append(self._channel)
            self._endpoint, self._address = found, found.address
            self._channel = _dial_nested(found)
            self._stub = fabric_pb2_grpc.FabricServiceStub(self._channel)
            self._metadata = (("authorization", f"Bearer {found.token}"),)

    def _passes(self, exc: TreadleError) -> bool:
        """Whether an error may be another one, or none, in a moment.

        A dispatcher that has just started does not know the token that the one before it gave; the
        worker brings another as soon as it is attached.
        """
        return isinstance(exc, Unavailable) or (self._source is not None and isinstance(exc, Unauthenticated))

    # Calls.

    def _call(self, op: str, method: str, request: Any, wait: float = 0.0) -> Any:
        if self._is_closed:
            raise ClientClosed(f"{op}: the client is closed")
        self._check_process()
        return self._try(op, method, request, self._timeout + wait)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise TreadleError("a client does not survive os.fork; make a new one in the child process")

    def _try(self, op: str, method: str, request: Any, limit: float) -> Any:
        """Make one call, and again while no server answers, for limit seconds in all.

        The request stays the same, its request id included: what was recorded by a call whose
        answer was lost is found, not recorded twice.
        """
        begun = time.monotonic()
        end = begun + limit
        warned = False
        for pause in _await.backoff():
            try:
                answer = getattr(self._stub, method)(
                    request, timeout=max(end - time.monotonic(), 0.001), metadata=self._metadata
                )
                self._met = True
                return answer
            except grpc.RpcError as err:
                exc = _status.from_rpc(op, err)
            except ValueError as err:  # what grpc raises on a closed channel
                raise ClientClosed(f"{op}: the client is closed") from err
            if self._ended.is_set():
                raise ClientClosed(f"{op}: the client was closed")
            if not isinstance(exc, Unavailable):
                self._met = True  # a refusal is an answer
            if not self._passes(exc):
                raise exc
            self._look_again()
            if isinstance(exc, Unauthenticated) and time.monotonic() > begun + _UNKNOWN_TOKEN:
                raise exc
            if self._source is None and not self._met and not warned:
                hopeless = _address.diagnose(self._address, self._ca, str(exc))
                if hopeless:
                    raise Unavailable(f"{op}: {hopeless}")
            left = end - time.monotonic()
            if left <= pause:
                raise Unavailable(f"no server answered at {self._address} within {limit:.3g} s: {exc}")
            if not warned:
                warned = True
                log.warning("no server answers at %s, trying for %.3g s more: %s", self._address, left, exc)
            self._ended.wait(pause)
        raise AssertionError("backoff never ends")

    def _send_batch(self, request: pb.ExecuteBatchRequest, size: int) -> pb.ExecuteBatchResponse:
        # Not _call: close sends what is queued.
        limit = self._timeout + size / (1 << 20) * _SECONDS_PER_MIB
        answer: pb.ExecuteBatchResponse = self._try("Execute", "ExecuteBatch", request, limit)
        return answer

    def _landed(self, futures: list[TaskFuture[Any]]) -> None:
        for future in futures:
            if future._unwanted is not None:
                self._canceller.add(future.task_id, future._unwanted)
        if not self._is_closed:
            self._awaiter.add(futures)
            return
        # close sent them, and waits for no result. (At the interpreter's end no thread can start.)
        for future in futures:
            future._settle(Outcome(error=ClientClosed("the client was closed while waiting; the task goes on")))

    def _open_stream(self, request: pb.AwaitResultsRequest) -> Any:
        self._look_again()
        try:
            return self._stub.AwaitResults(request, metadata=self._metadata)
        except ValueError as err:
            raise ClientClosed("AwaitResults: the client is closed") from err

    def _known_task(self, task_id: str) -> object:
        return self._try("GetTask", "GetTask", pb.GetTaskRequest(task_id=task_id), self._timeout)

    # Functions.

    def register(self, request: pb.RegisterFunctionRequest) -> pb.Function:
        """Register a function."""
        self._check_process()
        # Not _call: close sends what is queued, and registers what that needs.
        limit = self._timeout + len(request.payload) / (1 << 20) * _SECONDS_PER_MIB
        answer: pb.Function = self._try("RegisterFunction", "RegisterFunction", request, limit)
        return answer

    def get_function(self, function: str) -> pb.Function:
        """A registration by id or name."""
        self._check_process()
        request = pb.GetFunctionRequest(function=function)
        # Not _call, as in register.
        answer: pb.Function = self._try("GetFunction", "GetFunction", request, self._timeout)
        return answer

    def delete_function(self, function_id: str) -> None:
        """Delete a registration."""
        self._call("DeleteFunction", "DeleteFunction", pb.DeleteFunctionRequest(function_id=function_id))

    def list_functions(self, page_token: str) -> pb.ListFunctionsResponse:
        """One page of registrations."""
        request = pb.ListFunctionsRequest(page_token=page_token)
        answer: pb.ListFunctionsResponse = self._call("ListFunctions", "ListFunctions", request)
        return answer

    # Tasks.

    def submit(self, call: Call) -> TaskFuture[Any]:
        """Have a task recorded and its result delivered to the future; does not wait for the server."""
        future = self.prepare(call)
        self._submitter.submit(call, future)
        return future

    def prepare(self, call: Call) -> TaskFuture[Any]:
        """The future of a task that send will have recorded."""
        self._check_process()
        return TaskFuture(self, call.request.function or call.label, call.label)

    def send(self, call: Call, future: TaskFuture[Any]) -> None:
        """Have a task recorded and its result delivered to its future; does not wait for the server."""
        self._submitter.submit(call, future)

    def attach(self, task_id: str) -> TaskFuture[Any]:
        """Have the result of a recorded task delivered to a new future."""
        task = self.get_task(task_id)
        future: TaskFuture[Any] = TaskFuture(self, task.function_id, task.function_name)
        mark_recorded([(future, task.task_id)])
        self._awaiter.add([future])
        return future

    def withdraw(self, future: TaskFuture[Any]) -> bool:
        """Take a task back that was not sent yet; says whether that was so."""
        return self._submitter.withdraw(future)

    def cancel_all(self, futures: Iterable[TaskFuture[Any]], only_queued: bool = False) -> None:
        """Cancel many tasks, as far as that is possible; raises nothing."""
        sent = []
        for future in futures:
            if future.done():
                continue
            if self.withdraw(future):
                future._mark_cancelled()
            elif future._wait_recorded() is not None:
                sent.append(future)
        while sent and not self._is_closed:
            window, sent = sent[: _cancel.WINDOW], sent[_cancel.WINDOW :]
            answers = self._cancel_window([(future.task_id, only_queued) for future in window])
            for future, cancelled in zip(window, answers):
                if cancelled:
                    future._mark_cancelled()

    def cancel_later(self, future: TaskFuture[Any], only_queued: bool) -> None:
        """Cancel a task in the background, once it is recorded; waits for nobody."""
        task_id = mark_unwanted(future, only_queued)
        if task_id is not None:
            self._canceller.add(task_id, only_queued)

    def _cancel_window(self, tasks: list[tuple[str, bool]]) -> list[bool]:
        """Cancel a few tasks at once; says of each whether it is cancelled now. Raises nothing."""
        calls: list[Any] = []
        for task_id, only_queued in tasks:
            request = pb.CancelTaskRequest(task_id=task_id, only_queued=only_queued)
            try:
                # A server that restarts is waited for.
                call = self._stub.CancelTask.future(
                    request, timeout=self._timeout, metadata=self._metadata, wait_for_ready=True
                )
            except Exception as exc:  # the channel was closed
                log.debug("cancel: %s", exc)
                call = None
            calls.append(call)
        answers = []
        for call in calls:
            try:
                answers.append(call is not None and call.result().status == pb.Task.CANCELLED)
            except Exception as exc:
                log.debug("cancel: %s", exc)
                answers.append(False)
        return answers

    def glance(self, task_id: str) -> pb.Task | None:
        """A task's record where it can be had within a second."""
        try:
            request = pb.GetTaskRequest(task_id=task_id)
            found: pb.Task = self._stub.GetTask(request, timeout=min(1.0, self._timeout), metadata=self._metadata)
        except Exception as exc:
            log.debug("a task's status: %s", exc)
            return None
        return found

    def get_task(self, task_id: str) -> pb.Task:
        """A task's record."""
        answer: pb.Task = self._call("GetTask", "GetTask", pb.GetTaskRequest(task_id=task_id))
        return answer

    def get_result(self, task_id: str, timeout: float | None) -> pb.TaskResult:
        """A task's result, waiting for the end of the task; TimeoutError when timeout ends first."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _MAX_WAIT if end is None else max(end - time.monotonic(), 0.0)
            wait = min(left, _MAX_WAIT)
            request = pb.GetResultRequest(task_id=task_id)
            request.wait.FromNanoseconds(int(wait * 1e9))
            answer: pb.TaskResult = self._call("GetResult", "GetResult", request, wait)
            if finished(answer):
                return answer
            if end is not None and time.monotonic() >= end:
                raise concurrent.futures.TimeoutError(f"task {task_id} is not finished after {timeout:.3g} s")

    def cancel_task(self, task_id: str, only_queued: bool = False) -> pb.Task:
        """Cancel a task."""
        request = pb.CancelTaskRequest(task_id=task_id, only_queued=only_queued)
        answer: pb.Task = self._call("CancelTask", "CancelTask", request)
        return answer

    def get_logs(self, task_id: str, attempt: int) -> pb.TaskLogs:
        """What an attempt printed."""
        request = pb.GetLogsRequest(task_id=task_id, attempt=attempt)
        answer: pb.TaskLogs = self._call("GetLogs", "GetLogs", request)
        return answer

    def list_tasks(self, filter: str, page_size: int, page_token: str, full: bool) -> pb.ListTasksResponse:
        """One page of tasks; full has tracebacks and whole messages."""
        view = pb.ListTasksRequest.FULL if full else pb.ListTasksRequest.BASIC
        request = pb.ListTasksRequest(filter=filter, page_size=page_size, page_token=page_token, view=view)
        answer: pb.ListTasksResponse = self._call("ListTasks", "ListTasks", request)
        return answer

    # The fabric.

    def list_workers(self) -> pb.ListWorkersResponse:
        """The attached workers."""
        whole, token = pb.ListWorkersResponse(), ""
        while True:
            request = pb.ListWorkersRequest(page_size=1000, page_token=token)
            page: pb.ListWorkersResponse = self._call("ListWorkers", "ListWorkers", request)
            whole.workers.extend(page.workers)
            token = page.next_page_token
            if not token:
                return whole

    def list_queues(self) -> pb.ListQueuesResponse:
        """The queues with unfinished tasks."""
        whole, token = pb.ListQueuesResponse(), ""
        while True:
            request = pb.ListQueuesRequest(page_size=1000, page_token=token)
            page: pb.ListQueuesResponse = self._call("ListQueues", "ListQueues", request)
            whole.queues.extend(page.queues)
            token = page.next_page_token
            if not token:
                return whole

    def info(self) -> pb.ServerInfo:
        """What the server is."""
        answer: pb.ServerInfo = self._call("GetServerInfo", "GetServerInfo", pb.GetServerInfoRequest())
        return answer


def credentials(tls: Tls | None, ca: str | None) -> Tls:
    """What speaks to a server: tls where it is given, else what the CA in a file signed, else plain text."""
    if tls is not None and not (tls is True and ca):
        return tls
    if not ca:
        return False
    if ca == _SYSTEM:
        return True
    try:
        with open(ca, "rb") as file:
            pem = file.read()
    except OSError as exc:
        raise ValueError(f"the CA (ca=, TREADLE_TLS_CA): {exc}") from exc
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError(f"the CA (ca=, TREADLE_TLS_CA): there is no certificate in PEM in {ca}")
    return grpc.ssl_channel_credentials(root_certificates=pem)


def _dial_nested(at: _nested.Endpoint) -> grpc.Channel:
    names: list[tuple[str, Any]] = []
    if at.authority:
        # It is an address of one of several dispatchers that this name may stand for.
        names.append(("grpc.default_authority", at.authority))
        names.append(("grpc.ssl_target_name_override", at.authority.rpartition(":")[0].strip("[]")))
    speaks: Tls = grpc.ssl_channel_credentials(root_certificates=at.ca or None) if at.tls else False
    return _dial(at.address, speaks, names if at.tls else [])


def _dial(address: str, tls: Tls, more: Iterable[tuple[str, Any]] = ()) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        # A stream of answers is read by the thread that wants it. By default a thread of the channel reads
        # it, and a stream that cannot connect may get its status and never the end of its reads: whoever
        # iterates over it then waits for ever (grpcio 1.78 to 1.85.3, one time in ten in a trial).
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
        *more,
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
        # The server cuts off who pings more often than every 5 s.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # The default waits up to two minutes between dials; a server that restarts is back in a moment.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A connection of its own: its backoff is no other client's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.primary_user_agent", f"treadle-python/{__version__}"),
    ]
    if _address.is_loopback(address):
        # A proxy of the environment (http_proxy) cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is False:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials() if tls is True else tls, options)


# Connections that are open: what is queued at the end of the interpreter is still sent.
_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for connection in list(_open):
        try:
            # Not the channel, which could wait for a thread that can no longer start.
            connection._end()
        except Exception as exc:
            log.debug("close: %s", exc)
