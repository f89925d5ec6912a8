import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerFrame(_message.Message):
    __slots__ = ("hello", "accepts", "outcomes", "beat", "want", "need_function", "output", "drain", "bye", "chunk")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    NEED_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    accepts: Accepts
    outcomes: Outcomes
    beat: Beat
    want: Want
    need_function: NeedFunction
    output: Output
    drain: Drain
    bye: Bye
    chunk: Chunk
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., accepts: _Optional[_Union[Accepts, _Mapping]] = ..., outcomes: _Optional[_Union[Outcomes, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., need_function: _Optional[_Union[NeedFunction, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class DispatcherFrame(_message.Message):
    __slots__ = ("welcome", "offers", "acks", "beat_ack", "revoke", "recall", "function_bytes", "drain", "bye", "chunk")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    BEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    offers: Offers
    acks: Acks
    beat_ack: BeatAck
    revoke: Revoke
    recall: Recall
    function_bytes: FunctionBytes
    drain: Drain
    bye: Bye
    chunk: Chunk
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., offers: _Optional[_Union[Offers, _Mapping]] = ..., acks: _Optional[_Union[Acks, _Mapping]] = ..., beat_ack: _Optional[_Union[BeatAck, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ..., function_bytes: _Optional[_Union[FunctionBytes, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("task_id", "epoch", "claim_id", "attempt")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLAIM_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    task_id: bytes
    epoch: int
    claim_id: bytes
    attempt: int
    def __init__(self, task_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., claim_id: _Optional[bytes] = ..., attempt: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("inline", "chunked", "size")
    INLINE_FIELD_NUMBER: _ClassVar[int]
    CHUNKED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    inline: bytes
    chunked: int
    size: int
    def __init__(self, inline: _Optional[bytes] = ..., chunked: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("value", "data")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    value: int
    data: bytes
    def __init__(self, value: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "worker", "name", "host", "pid", "software", "queues", "runtimes", "handlers", "slots", "held")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    HANDLERS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    version: int
    worker: str
    name: str
    host: str
    pid: int
    software: str
    queues: _containers.RepeatedScalarFieldContainer[str]
    runtimes: _containers.RepeatedScalarFieldContainer[str]
    handlers: _containers.RepeatedScalarFieldContainer[str]
    slots: int
    held: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, version: _Optional[int] = ..., worker: _Optional[str] = ..., name: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., software: _Optional[str] = ..., queues: _Optional[_Iterable[str]] = ..., runtimes: _Optional[_Iterable[str]] = ..., handlers: _Optional[_Iterable[str]] = ..., slots: _Optional[int] = ..., held: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("token", "started_ago")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    STARTED_AGO_FIELD_NUMBER: _ClassVar[int]
    token: Token
    started_ago: _duration_pb2.Duration
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., started_ago: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("session", "lease", "heartbeat", "margin", "max_payload", "stale")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    lease: _duration_pb2.Duration
    heartbeat: _duration_pb2.Duration
    margin: _duration_pb2.Duration
    max_payload: int
    stale: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, session: _Optional[bytes] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., margin: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_payload: _Optional[int] = ..., stale: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Offers(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Offer]
    def __init__(self, items: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("token", "function_id", "function_name", "runtime", "form", "hash", "args_encoding", "returns", "args", "timeout", "memory_limit")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_NAME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    ARGS_ENCODING_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    token: Token
    function_id: bytes
    function_name: str
    runtime: str
    form: str
    hash: bytes
    args_encoding: str
    returns: str
    args: Value
    timeout: _duration_pb2.Duration
    memory_limit: int
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., function_id: _Optional[bytes] = ..., function_name: _Optional[str] = ..., runtime: _Optional[str] = ..., form: _Optional[str] = ..., hash: _Optional[bytes] = ..., args_encoding: _Optional[str] = ..., returns: _Optional[str] = ..., args: _Optional[_Union[Value, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., memory_limit: _Optional[int] = ...) -> None: ...

class Accepts(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Accept]
    def __init__(self, items: _Optional[_Iterable[_Union[Accept, _Mapping]]] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("token", "ago")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    AGO_FIELD_NUMBER: _ClassVar[int]
    token: Token
    ago: _duration_pb2.Duration
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., ago: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Outcomes(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, items: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("token", "end", "result", "encoding", "repr", "failure", "run_time", "log")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    REPR_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    token: Token
    end: str
    result: Value
    encoding: str
    repr: str
    failure: Failure
    run_time: _duration_pb2.Duration
    log: bytes
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., end: _Optional[str] = ..., result: _Optional[_Union[Value, _Mapping]] = ..., encoding: _Optional[str] = ..., repr: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., run_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., log: _Optional[bytes] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("exception_type", "message", "traceback", "exception_pickle", "foreign_pickle")
    EXCEPTION_TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_PICKLE_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_PICKLE_FIELD_NUMBER: _ClassVar[int]
    exception_type: str
    message: str
    traceback: str
    exception_pickle: bytes
    foreign_pickle: bytes
    def __init__(self, exception_type: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., exception_pickle: _Optional[bytes] = ..., foreign_pickle: _Optional[bytes] = ...) -> None: ...

class Acks(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Ack]
    def __init__(self, items: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("token", "verdict")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    token: Token
    verdict: str
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., verdict: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("seq", "held")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    seq: int
    held: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, seq: _Optional[int] = ..., held: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class BeatAck(_message.Message):
    __slots__ = ("seq", "stale")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    stale: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, seq: _Optional[int] = ..., stale: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("n",)
    N_FIELD_NUMBER: _ClassVar[int]
    n: int
    def __init__(self, n: _Optional[int] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("n",)
    N_FIELD_NUMBER: _ClassVar[int]
    n: int
    def __init__(self, n: _Optional[int] = ...) -> None: ...

class NeedFunction(_message.Message):
    __slots__ = ("hash",)
    HASH_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    def __init__(self, hash: _Optional[bytes] = ...) -> None: ...

class FunctionBytes(_message.Message):
    __slots__ = ("hash", "bytes", "missing")
    HASH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    bytes: Value
    missing: bool
    def __init__(self, hash: _Optional[bytes] = ..., bytes: _Optional[_Union[Value, _Mapping]] = ..., missing: bool = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("token", "data")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    token: Token
    data: bytes
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("retry", "reason")
    RETRY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    retry: bool
    reason: str
    def __init__(self, retry: bool = ..., reason: _Optional[str] = ...) -> None: ...
