"""What a client stands on: a server, or something that acts like one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ._gen.treadle.v1 import fabric_pb2 as pb
from ._submit import Call
from .future import TaskFuture


class Backend(Protocol):
    """The API in the form that Client needs. Every method may be called by any thread.

    Methods raise TreadleError, nothing else.
    """

    @property
    def address(self) -> str:
        """Where the server is."""

    @property
    def nested(self) -> bool:
        """Whether a running task uses it, by its own token."""

    def register(self, request: pb.RegisterFunctionRequest) -> pb.Function:
        """Register a function."""

    def get_function(self, function: str) -> pb.Function:
        """A registration by id or name."""

    def delete_function(self, function_id: str) -> None:
        """Delete a registration."""

    def list_functions(self, page_token: str) -> pb.ListFunctionsResponse:
        """One page of registrations."""

    def submit(self, call: Call) -> TaskFuture[Any]:
        """Have a task recorded and its result delivered to the future; does not wait for the server."""

    def prepare(self, call: Call) -> TaskFuture[Any]:
        """The future of a task that send will have recorded."""

    def send(self, call: Call, future: TaskFuture[Any]) -> None:
        """Have a task recorded and its result delivered to its future; does not wait for the server."""

    def attach(self, task_id: str) -> TaskFuture[Any]:
        """Have the result of a recorded task delivered to a new future."""

    def withdraw(self, future: TaskFuture[Any]) -> bool:
        """Take a task back that was not sent yet; says whether that was so."""

    def cancel_all(self, futures: Iterable[TaskFuture[Any]], only_queued: bool = False) -> None:
        """Cancel many tasks, as far as that is possible; raises nothing."""

    def cancel_later(self, future: TaskFuture[Any], only_queued: bool) -> None:
        """Cancel a task in the background, once it is recorded; waits for nobody."""

    def glance(self, task_id: str) -> pb.Task | None:
        """A task's record where it can be had within a second."""

    def get_task(self, task_id: str) -> pb.Task:
        """A task's record."""

    def get_result(self, task_id: str, timeout: float | None) -> pb.TaskResult:
        """A task's result, waiting for the end of the task; TimeoutError when timeout ends first."""

    def cancel_task(self, task_id: str, only_queued: bool = False) -> pb.Task:
        """Cancel a task."""

    def get_logs(self, task_id: str, attempt: int) -> pb.TaskLogs:
        """What an attempt printed."""

    def list_tasks(self, filter: str, page_size: int, page_token: str, full: bool) -> pb.ListTasksResponse:
        """One page of tasks; full has tracebacks and whole messages."""

    def list_workers(self) -> pb.ListWorkersResponse:
        """The attached workers."""

    def list_queues(self) -> pb.ListQueuesResponse:
        """The queues with unfinished tasks."""

    def info(self) -> pb.ServerInfo:
        """What the server is."""

    def close(self) -> None:
        """Send what is queued, then end. May be called more than once."""
