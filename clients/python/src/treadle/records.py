"""What the server tells of tasks, workers and queues, as plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from google.protobuf.timestamp_pb2 import Timestamp

from ._gen.treadle.v1 import fabric_pb2 as pb
from .options import Options


class Status(str, enum.Enum):
    """A task's status; compares equal to its text.

    A task moves QUEUED, RUNNING, terminal. A requeue leads back to QUEUED; terminal is final.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether the task is finished."""
        return self not in (Status.QUEUED, Status.RUNNING)

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, status: pb.Task.Status.ValueType) -> Status:
        """The status that the API's number means; raises ValueError for one that is unknown."""
        return cls(pb.Task.Status.Name(status))


@dataclass(frozen=True)
class Attempt:
    """One started try of a task."""

    number: int
    worker: str
    started_at: Optional[datetime]
    finished_at: Optional[datetime]
    end: str
    """succeeded, raised, lost, returned, timed_out, exhausted, unreadable, cancelled; empty while it runs."""
    reason: str
    """One line on an end other than succeeded."""


@dataclass(frozen=True)
class Task:
    """The record of one execution, as it was when asked for."""

    task_id: str
    function_id: str
    function_name: str
    queue: str
    runtime: str
    status: Status
    priority: int
    created_at: Optional[datetime]
    started_at: Optional[datetime]
    """Start of the latest attempt."""
    finished_at: Optional[datetime]
    not_before: Optional[datetime]
    """A requeued task waits until then."""
    worker: str
    """Worker of the latest attempt."""
    attempt_count: int
    attempts: tuple[Attempt, ...]
    """The last 16."""
    lost_workers: int
    raised: int
    error_type: str
    """Failure class of a FAILED or CANCELLED task, else empty."""
    exception_type: str
    error_message: str
    traceback: str
    args_size: int
    result_size: int
    options: Options
    """The options in force."""
    created_by: str = ""
    """Id of the token that submitted it; empty on servers that ask for none."""
    parent_id: str = ""
    """Id of the task that submitted it; empty for one that a client submitted."""


@dataclass(frozen=True)
class Worker:
    """An attached worker."""

    worker_id: str
    name: str
    host: str
    pid: int
    mode: str
    """push, pull or local."""
    state: str
    """active, draining, silent or lost."""
    queues: tuple[str, ...]
    runtimes: tuple[str, ...]
    version: str
    slots: int
    running: int
    offered: int
    """Offers that wait for a slot."""
    connected_at: Optional[datetime]
    last_seen_at: Optional[datetime]


@dataclass(frozen=True)
class Queue:
    """The unfinished tasks of one queue and runtime, counted."""

    name: str
    runtime: str
    queued: int
    running: int


@dataclass(frozen=True)
class ServerInfo:
    """What a server is."""

    version: str
    durability: str
    """memory, embedded, redis-async or redis-replicated."""
    max_payload: int
    """The one limit on a payload or result, in bytes."""
    retention: float
    """How long finished tasks are kept, in seconds."""


def when(message: object, field: str) -> Optional[datetime]:
    """A timestamp of a message as UTC, None where it is not set."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=timezone.utc)


def task_of(m: pb.Task) -> Task:
    """A task's record from its message."""
    o = m.options
    return Task(
        task_id=m.task_id,
        function_id=m.function_id,
        function_name=m.function_name,
        queue=m.queue,
        runtime=m.runtime,
        status=Status.of(m.status),
        priority=m.priority,
        created_at=when(m, "created_at"),
        created_by=m.created_by,
        parent_id=m.parent_id,
        started_at=when(m, "started_at"),
        finished_at=when(m, "finished_at"),
        not_before=when(m, "not_before"),
        worker=m.worker,
        attempt_count=m.attempt_count,
        attempts=tuple(
            Attempt(a.number, a.worker, when(a, "started_at"), when(a, "finished_at"), a.end, a.reason)
            for a in m.attempts
        ),
        lost_workers=m.lost_workers,
        raised=m.raised,
        error_type=m.error.error_type,
        exception_type=m.error.exception_type,
        error_message=m.error.message,
        traceback=m.error.traceback,
        args_size=m.args_size,
        result_size=m.result_size,
        options=Options(
            priority=o.priority if o.HasField("priority") else None,
            timeout=o.timeout.ToTimedelta().total_seconds() if o.HasField("timeout") else None,
            deadline=when(o, "deadline"),
            max_retries=o.max_retries if o.HasField("max_retries") else None,
            function_retries=o.function_retries if o.HasField("function_retries") else None,
            memory_limit=o.memory_limit or None,
        ),
    )


def worker_of(m: pb.Worker) -> Worker:
    """A worker from its message."""
    return Worker(
        worker_id=m.worker_id,
        name=m.name,
        host=m.host,
        pid=m.pid,
        mode=m.mode,
        state=m.state,
        queues=tuple(m.queues),
        runtimes=tuple(m.runtimes),
        version=m.version,
        slots=m.slots,
        running=m.running,
        offered=m.offered,
        connected_at=when(m, "connected_at"),
        last_seen_at=when(m, "last_seen_at"),
    )


def queue_of(m: pb.Queue) -> Queue:
    """A queue from its message."""
    return Queue(name=m.name, runtime=m.runtime, queued=m.queued, running=m.running)


def info_of(m: pb.ServerInfo) -> ServerInfo:
    """A server from its message."""
    return ServerInfo(
        version=m.version,
        durability=m.durability,
        max_payload=m.max_payload,
        retention=m.retention.ToTimedelta().total_seconds(),
    )
