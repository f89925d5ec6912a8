"""What the OpenAPI description says beyond the contract; openapi.py reads it.

Numbers here are those of the server: a test of package server compares them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STREAM = "application/x-ndjson"

INFO: Schema = {
    "title": "Treadle",
    "version": "VERSION",
    "summary": "Register a function once, execute it by id any number of times.",
    "description": (
        "Register a function once, execute it by id any number of times, watch its tasks and fetch their "
        "results. Everything under `/v1` is the resource form for people and new programs; the four routes at "
        "the root serve the clients of an older interface.\n\n"
        "Servers that have tokens want one as `Authorization: Bearer TOKEN`; others ask for none.\n\n"
        "Under `/v1` an unknown field or query parameter is 400 `UNKNOWN_FIELD`; `?strict=false` ignores it. "
        "`Content-Type` is not checked.\n\n"
        "`Grpc-Timeout: 500m` (a number of at most 8 digits and one of H, M, S, m, u, n) bounds a call: 504 "
        "`CALL_TIMED_OUT` when it has passed. The task goes on."
    ),
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}

TAGS = [
    {"name": "functions", "description": "Register functions and call them."},
    {"name": "tasks", "description": "Submit tasks, follow them and fetch their results."},
    {"name": "fleet", "description": "The server, its workers and its queues."},
    {"name": "root", "description": "Four routes for the clients of an older interface. Values are pickles in base64."},
    {"name": "pages", "description": "Health, metrics and this description."},
]

SECURITY_SCHEMES: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token that `treadle token` made, of the role client or admin.",
    }
}
TOKEN_OR_NONE: list[Schema] = [{"bearer": []}, {}]

FUNCTION_ID = "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
TASK_ID = "0197c3a2-6a00-7d43-8b0e-5c1f2a7d9e34"
OTHER_ID = "0197c3a2-6a01-7a10-9c55-0b9e4d3f8a72"
WORKER_ID = "0197c3a1-f0aa-7b2e-b1f0-6d2c9e8a4417"
REQUEST_ID = "2c5ea4c0-4067-11e9-8bad-9b1deb4d3b7d"
AT = "2026-01-02T15:04:05.123Z"
STARTED = "2026-01-02T15:04:05.125Z"
FINISHED = "2026-01-02T15:04:05.131Z"

DURATION: Schema = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$",
    "examples": ["5s"],
}
WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Duration": DURATION,
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time", "examples": [AT]},
}

# Bytes that hold JSON stand in documents as the JSON that they hold.
JSON_FIELDS: dict[str, Schema] = {
    "CallInput.args": {
        "type": "array",
        "items": {},
        "description": "Positional arguments: any JSON values.",
        "examples": [[21]],
    },
    "CallInput.kwargs": {
        "type": "object",
        "additionalProperties": {},
        "description": "Keyword arguments: any JSON values.",
        "examples": [{"x": 21}],
    },
    "ExecuteRequest.args": {
        "type": "array",
        "items": {},
        "description": "Positional arguments: any JSON values. With args or kwargs the result is wanted as JSON.",
        "examples": [[21]],
    },
    "ExecuteRequest.kwargs": {
        "type": "object",
        "additionalProperties": {},
        "description": "Keyword arguments: any JSON values.",
        "examples": [{"x": 21}],
    },
    "TaskResult.result": {
        "description": (
            "The value, when the task was called with JSON and JSON can hold it. Integers have any number of digits."
        ),
    },
}

# Schemas with names other than those of their messages.
NAMES = {
    "ListFunctionsResponse": "FunctionPage",
    "ListTasksResponse": "TaskPage",
    "ListWorkersResponse": "WorkerPage",
    "ListQueuesResponse": "QueuePage",
    "DeleteFunctionResponse": "Deleted",
}

# Fields that answers leave out when they are empty, as package restjson does.
LEFT_OUT = {"Function.python", "TaskResult.result_repr"}

# Required fields of what clients send. Those of answers follow from their types.
REQUIRED: dict[str, list[str]] = {
    "RegisterFunctionRequest": ["name"],
    "ExecuteRequest": ["function"],
    "ExecuteBatchRequest": ["requests"],
    "CallInput": [],
    "ExecuteOptions": [],
    "RegisterRootRequest": ["name", "payload"],
    "ExecuteRootRequest": ["function_id", "payload"],
}

# What clients send, and no answer holds, has no other fields.
CLOSED = {"RegisterFunctionRequest", "ExecuteRequest", "ExecuteBatchRequest", "CallInput"}

ID: Schema = {"format": "uuid", "examples": [TASK_ID]}
FUNCTION: Schema = {"minLength": 1, "maxLength": 4096, "examples": ["double"]}
RETRIES: Schema = {"minimum": 0, "maximum": 1000}
COUNT: Schema = {"minimum": 0}

# More of a field, by message and name; "*" is every message.
FIELDS: dict[str, Schema] = {
    "*.page_size": {"minimum": 0, "examples": [100]},
    "*.page_token": {"maxLength": 4096},
    "*.queue": {"maxLength": 128, "examples": ["default"]},
    "Function.function_id": ID,
    "Function.name": {"minLength": 1, "maxLength": 256, "examples": ["double"]},
    "Function.form": {"enum": ["pickle", "source", "none"]},
    "Function.payload_sha256": {"pattern": "^([0-9a-f]{64})?$"},
    "Function.payload_size": COUNT,
    "RegisterFunctionRequest.name": {"minLength": 1, "maxLength": 256, "examples": ["double"]},
    "RegisterFunctionRequest.runtime": {"default": "python"},
    "RegisterFunctionRequest.request_id": {"maxLength": 128},
    "RegisterFunctionRequest.python": {"pattern": r"^([0-9]+\.[0-9]+)?$", "examples": ["3.12"]},
    "GetFunctionRequest.function": FUNCTION,
    "DeleteFunctionRequest.function_id": ID,
    "ExecuteOptions.priority": {"minimum": 0, "maximum": 9, "default": 5},
    "ExecuteOptions.max_retries": RETRIES,
    "ExecuteOptions.function_retries": RETRIES | {"default": 0},
    "ExecuteOptions.memory_limit": {
        "minimum": 0,
        "description": "Memory of one attempt in bytes: 0 for the worker's --memory-limit, else at least 1,048,576.",
    },
    "ExecuteRequest.function": FUNCTION,
    "ExecuteRequest.request_id": {"maxLength": 128},
    "ExecuteBatchRequest.requests": {"maxItems": 10_000},
    "CallRequest.function": FUNCTION,
    "CallInput.request_id": {"maxLength": 128},
    "Task.task_id": ID,
    "Task.function_id": ID,
    "Task.priority": {"minimum": 0, "maximum": 9},
    "Task.attempt_count": COUNT,
    "Task.attempts": {"maxItems": 16},
    "Task.lost_workers": COUNT,
    "Task.raised": COUNT,
    "Task.args_size": COUNT,
    "Task.result_size": COUNT,
    "Attempt.number": {"minimum": 1},
    "Attempt.end": {
        "enum": ["", "succeeded", "raised", "lost", "returned", "timed_out", "exhausted", "unreadable", "cancelled"]
    },
    "TaskError.error_type": {
        "enum": [
            "FunctionExecutionFailure",
            "WorkerFailureError",
            "DeadlineExceededError",
            "ResourceLimitExceeded",
            "SerializationError",
            "Cancelled",
        ]
    },
    "TaskResult.task_id": ID,
    "GetTaskRequest.task_id": ID,
    "GetResultRequest.task_id": ID,
    "ListTasksRequest.filter": {"maxLength": 4096, "examples": ["status = FAILED AND function = double"]},
    "WatchTaskRequest.task_id": ID,
    "CancelTaskRequest.task_id": ID,
    "GetLogsRequest.task_id": ID,
    "GetLogsRequest.attempt": COUNT,
    "TaskLogs.task_id": ID,
    "TaskLogs.attempt": COUNT,
    "Worker.mode": {"enum": ["push", "pull", "local"]},
    "Worker.state": {"enum": ["active", "draining", "silent", "lost"]},
    "Worker.slots": COUNT,
    "Worker.running": COUNT,
    "Worker.offered": COUNT,
    "Queue.queued": COUNT,
    "Queue.running": COUNT,
    "ServerInfo.durability": {"enum": ["memory", "embedded", "redis-async", "redis-replicated"]},
    "ServerInfo.max_payload": COUNT,
    "RegisterRootRequest.name": {"maxLength": 256},
    "RegisterRootResponse.function_id": ID,
    "ExecuteRootRequest.function_id": {"format": "uuid", "examples": [FUNCTION_ID]},
    "ExecuteRootResponse.task_id": ID,
    "GetRootStatusRequest.task_id": ID,
    "GetRootStatusResponse.task_id": ID,
    "GetRootStatusResponse.status": {"enum": ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]},
    "GetRootResultRequest.task_id": ID,
    "GetRootResultResponse.task_id": ID,
    "GetRootResultResponse.status": {"enum": ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]},
}

REASONS = [
    "BODY_TOO_SLOW",
    "BUSY",
    "CALL_CANCELLED",
    "CALL_TIMED_OUT",
    "CONTENT_ENCODING",
    "CROSS_ORIGIN",
    "DENIED",
    "EXHAUSTED",
    "FUNCTION_IN_USE",
    "HOST_NOT_ALLOWED",
    "ILLEGAL_STATE",
    "INTERNAL",
    "INVALID_PAYLOAD",
    "INVALID_REQUEST",
    "METHOD_NOT_ALLOWED",
    "NOT_FOUND",
    "NOT_SERVED",
    "NO_SUCH_ROUTE",
    "QUOTA_EXCEEDED",
    "RATE_LIMITED",
    "REQUEST_ID_CONFLICT",
    "TOO_LARGE",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNKNOWN_FIELD",
]

SCHEMAS: dict[str, Schema] = {
    "ErrorObject": {
        "description": "What is wrong.",
        "type": "object",
        "required": ["code", "status", "reason", "message"],
        "properties": {
            "code": {"type": "integer", "description": "The HTTP status."},
            "status": {"type": "string", "description": "The gRPC code, as in NOT_FOUND."},
            "reason": {"type": "string", "enum": REASONS, "description": "What programs should act on."},
            "message": {
                "type": "string",
                "description": "For people: it names the value, the limit and the fix.",
            },
            "field": {
                "type": "string",
                "description": "The field or query parameter at fault, where it is one.",
            },
        },
    },
    "Error": {
        "type": "object",
        "description": "An error under /v1.",
        "required": ["error", "detail"],
        "properties": {
            "error": {"$ref": "#/components/schemas/ErrorObject"},
            "detail": {"type": "string", "description": "The message once more."},
        },
    },
    "RootFaults": {
        "type": "object",
        "description": "An error at the root: text, or for 422 a list of faults.",
        "required": ["detail"],
        "properties": {
            "detail": {
                "oneOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["loc", "msg", "type"],
                            "properties": {
                                "loc": {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "integer"}]}},
                                "msg": {"type": "string"},
                                "type": {"type": "string"},
                            },
                        },
                    },
                ]
            }
        },
    },
}

PARAMETERS: dict[str, Schema] = {
    "Strict": {
        "name": "strict",
        "in": "query",
        "description": "false ignores unknown fields and query parameters; otherwise they are 400 UNKNOWN_FIELD.",
        "schema": {"type": "boolean", "default": True},
    }
}

HEADERS: dict[str, Schema] = {
    "RetryAfter": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer", "minimum": 0}},
    "Authenticate": {"description": "The scheme that is wanted.", "schema": {"type": "string"}},
}

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _error(code: int, text: str, reason: str, message: str, field: str = "") -> Schema:
    error: Schema = {"code": code, "status": STATUS[code], "reason": reason, "message": message}
    if field:
        error["field"] = field
    response: Schema = {
        "description": text,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": {"error": error, "detail": message},
            }
        },
    }
    if code in (429, 503):
        response["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    if code == 401:
        response["headers"] = {"WWW-Authenticate": {"$ref": "#/components/headers/Authenticate"}}
    return response


def _root(text: str, detail: Any) -> Schema:
    schema = {"$ref": "#/components/schemas/RootFaults"}
    return {"description": text, "content": {"application/json": {"schema": schema, "example": {"detail": detail}}}}


RESPONSES: dict[str, Schema] = {
    "400": _error(
        400,
        "The request is malformed (INVALID_REQUEST, INVALID_PAYLOAD), or has an unknown field (UNKNOWN_FIELD).",
        "UNKNOWN_FIELD",
        "options.timeuot: unknown field: did you mean timeout?",
        "options.timeuot",
    ),
    "401": _error(
        401, "No token, or one that does not stand (UNAUTHENTICATED).", "UNAUTHENTICATED", "a token is needed"
    ),
    "403": _error(
        403,
        "The token's role may not do this (DENIED), or a browser sent this from elsewhere "
        "(HOST_NOT_ALLOWED, CROSS_ORIGIN).",
        "DENIED",
        "a worker token (w1) may not use the API: it takes a token of the role client or admin",
    ),
    "404": _error(
        404, "No function or task has that id or name (NOT_FOUND).", "NOT_FOUND", 'no function is named "duoble"'
    ),
    "408": _error(408, "The body arrived too slowly (BODY_TOO_SLOW).", "BODY_TOO_SLOW", "the body arrived too slowly"),
    "409": _error(
        409,
        "The request id was used for something else (REQUEST_ID_CONFLICT), or the thing is in no state for this "
        "(ILLEGAL_STATE, FUNCTION_IN_USE).",
        "FUNCTION_IN_USE",
        f"function {FUNCTION_ID} has at least 1 unfinished tasks",
    ),
    "413": _error(
        413,
        "The body or a payload in it is over the limit (TOO_LARGE).",
        "TOO_LARGE",
        "the body of 99999999 bytes is larger than the limit of 93952409 bytes (4/3 of --max-payload and 5 %)",
    ),
    "415": _error(
        415,
        "The body is compressed (CONTENT_ENCODING).",
        "CONTENT_ENCODING",
        'Content-Encoding "gzip" is not supported: send the body as it is',
    ),
    "429": _error(
        429,
        "Too much at once (RATE_LIMITED, QUOTA_EXCEEDED, EXHAUSTED).",
        "RATE_LIMITED",
        "this token calls more than --rate-limit allows",
    ),
    "500": _error(500, "A bug (INTERNAL).", "INTERNAL", "internal error; the server's log has the cause"),
    "503": _error(
        503,
        "The store does not answer, or the server is closing (UNAVAILABLE) or full (BUSY): repeat it "
        "with the same request_id.",
        "UNAVAILABLE",
        "the server is closing: ask another one, or again",
    ),
    "504": _error(
        504,
        "The deadline of the call passed, see Grpc-Timeout (CALL_TIMED_OUT).",
        "CALL_TIMED_OUT",
        "the call's own deadline passed",
    ),
    "Default": _error(500, "Another error.", "INTERNAL", "internal error; the server's log has the cause"),
    "Root400": _root("The payload is not base64 of a whole pickle.", "payload: not base64 of a pickle"),
    "Root404": _root("The function or the task is unknown, or the task id is no UUID.", f"no task {TASK_ID}"),
    "Root413": _root(
        "The body is over the limit.", "the body of 99999999 bytes is larger than the limit of 93952409 bytes"
    ),
    "Root422": _root(
        "The body is not one JSON object, a field is missing or of the wrong type, or the function id is no UUID.",
        [{"loc": ["body", "payload"], "msg": "Field required", "type": "missing"}],
    ),
    "RootDefault": _root("Another error.", "internal error; the server's log has the cause"),
}

# Errors of every route, and of those that read a body.
ALWAYS = [401, 403, 429, 500, 503, 504]
WITH_BODY = [408, 413, 415]
BY_ID = [400, 404]

FUNCTION_EXAMPLE: Schema = {
    "function_id": FUNCTION_ID,
    "name": "double",
    "runtime": "python",
    "queue": "default",
    "form": "source",
    "payload_sha256": "8c1f5a3d2b7e4f60918273645546372819a0b1c2d3e4f5061728394a5b6c7d8e",
    "payload_size": 31,
    "created_at": AT,
    "created_by": "",
    "transient": False,
}
OPTIONS_EXAMPLE: Schema = {"priority": 5, "timeout": "5s", "max_retries": 3, "function_retries": 0, "memory_limit": 0}
QUEUED_EXAMPLE: Schema = {
    "task_id": TASK_ID,
    "function_id": FUNCTION_ID,
    "function_name": "double",
    "queue": "default",
    "runtime": "python",
    "status": "QUEUED",
    "priority": 5,
    "created_at": AT,
    "worker": "",
    "attempt_count": 0,
    "attempts": [],
    "lost_workers": 0,
    "raised": 0,
    "args_size": 25,
    "result_size": 0,
    "options": OPTIONS_EXAMPLE,
    "created_by": "",
}
TASK_EXAMPLE: Schema = QUEUED_EXAMPLE | {
    "status": "COMPLETED",
    "started_at": STARTED,
    "finished_at": FINISHED,
    "worker": WORKER_ID,
    "attempt_count": 1,
    "attempts": [
        {
            "number": 1,
            "worker": WORKER_ID,
            "started_at": STARTED,
            "finished_at": FINISHED,
            "end": "succeeded",
            "reason": "",
        }
    ],
    "result_size": 2,
}
RESULT_EXAMPLE: Schema = {"task_id": TASK_ID, "status": "COMPLETED", "result": 42}
PICKLED = "gASVBQAAAAAAAABLKi4="

OPERATIONS: dict[str, Schema] = {
    "RootService.RegisterRoot": {
        "id": "registerAtRoot",
        "tag": "root",
        "summary": "Register a pickled function",
        "description": "Registers a pickled callable. Every registration makes a new id. Unknown fields are ignored.",
        "answer": "The id of the function.",
        "request": {"double": {"name": "double", "payload": "gASVIAAAAA..."}},
        "response": {"function_id": FUNCTION_ID},
        "created": True,
        "errors": [400, 422],
    },
    "RootService.ExecuteRoot": {
        "id": "executeAtRoot",
        "tag": "root",
        "summary": "Execute a function with pickled arguments",
        "description": (
            "Records one task. Its payload is a pickle of (args tuple, kwargs dict). Unknown fields are ignored."
        ),
        "answer": "The id of the task.",
        "request": {"double": {"function_id": FUNCTION_ID, "payload": "gASVDQAAAA..."}},
        "response": {"task_id": TASK_ID},
        "created": True,
        "errors": [400, 404, 422],
    },
    "RootService.GetRootStatus": {
        "id": "statusAtRoot",
        "tag": "root",
        "summary": "Status of a task",
        "description": "Returns a task's status.",
        "answer": "The status.",
        "response": {"task_id": TASK_ID, "status": "RUNNING"},
        "errors": [404],
    },
    "RootService.GetRootResult": {
        "id": "resultAtRoot",
        "tag": "root",
        "summary": "Result of a task as a pickle",
        "description": (
            "Returns a task's result, a pickle in base64. Unpickling runs code: do it only when you trust the workers."
        ),
        "answer": "The result, or any text while the task is unfinished.",
        "response": {"task_id": TASK_ID, "status": "COMPLETED", "result": PICKLED + "\n"},
        "errors": [404, 409],
    },
    "FabricService.RegisterFunction": {
        "id": "registerFunction",
        "tag": "functions",
        "summary": "Register a function",
        "answer": "The registration.",
        "request": {"source": {"name": "double", "source": "def double(x): return 2 * x"}},
        "response": FUNCTION_EXAMPLE,
        "errors": [400, 409],
    },
    "FabricService.ListFunctions": {
        "id": "listFunctions",
        "tag": "functions",
        "summary": "List registrations",
        "answer": "One page.",
        "response": {"functions": [FUNCTION_EXAMPLE], "next_page_token": ""},
        "errors": [400],
    },
    "FabricService.GetFunction": {
        "id": "getFunction",
        "tag": "functions",
        "summary": "Get a registration",
        "answer": "The registration.",
        "response": FUNCTION_EXAMPLE,
        "errors": BY_ID,
    },
    "FabricService.DeleteFunction": {
        "id": "deleteFunction",
        "tag": "functions",
        "summary": "Delete a registration",
        "answer": "It is gone.",
        "response": {},
        "errors": [*BY_ID, 409],
    },
    "FabricService.Call": {
        "id": "call",
        "tag": "functions",
        "summary": "Call a function and wait for its result",
        "answer": (
            "The result; also of a function that raised (status FAILED), and of a task that goes on (QUEUED, RUNNING)."
        ),
        "request": {
            "double": {"args": [21]},
            "options": {"kwargs": {"x": 21}, "options": {"timeout": "5s", "priority": 7}},
        },
        "body_required": False,
        "response": RESULT_EXAMPLE,
        "errors": [*BY_ID, 409],
    },
    "FabricService.Execute": {
        "id": "submit",
        "tag": "tasks",
        "summary": "Submit a task",
        "answer": "The record of the task.",
        "request": {
            "double": {"function": "double", "args": [21], "options": {"timeout": "5s"}, "request_id": REQUEST_ID}
        },
        "response": QUEUED_EXAMPLE,
        "errors": [*BY_ID, 409],
    },
    "FabricService.ExecuteBatch": {
        "id": "submitBatch",
        "tag": "tasks",
        "summary": "Submit many tasks",
        "answer": "An item for each request, in their order. Refused ones have an error.",
        "request": {"double": {"requests": [{"function": "double", "args": [1]}, {"function": "nobody", "args": [2]}]}},
        "response": {
            "items": [
                {"task_id": TASK_ID},
                {
                    "task_id": "",
                    "error": {"code": 5, "reason": "NOT_FOUND", "message": 'no function is named "nobody"'},
                },
            ]
        },
        "errors": [400],
    },
    "FabricService.ListTasks": {
        "id": "listTasks",
        "tag": "tasks",
        "summary": "List tasks",
        "answer": "One page.",
        "response": {"tasks": [TASK_EXAMPLE], "next_page_token": ""},
        "errors": BY_ID,
    },
    "FabricService.GetTask": {
        "id": "getTask",
        "tag": "tasks",
        "summary": "Get the record of a task",
        "answer": "The record.",
        "response": TASK_EXAMPLE,
        "errors": BY_ID,
    },
    "FabricService.WatchTask": {
        "id": "watchTask",
        "tag": "tasks",
        "summary": "Watch a task",
        "answer": "Records, one JSON document a line. A stream that breaks ends with one line that is an Error.",
        "response": [QUEUED_EXAMPLE, TASK_EXAMPLE],
        "errors": BY_ID,
    },
    "FabricService.CancelTask": {
        "id": "cancelTask",
        "tag": "tasks",
        "summary": "Cancel a task",
        "answer": "The record after it.",
        "response": QUEUED_EXAMPLE | {"status": "CANCELLED", "finished_at": FINISHED},
        "errors": BY_ID,
    },
    "FabricService.GetResult": {
        "id": "getResult",
        "tag": "tasks",
        "summary": "Get the result of a task, and wait for it",
        "answer": "The result, or the status of a task that goes on.",
        "response": RESULT_EXAMPLE,
        "errors": BY_ID,
    },
    "FabricService.GetLogs": {
        "id": "getLogs",
        "tag": "tasks",
        "summary": "Get what an attempt printed",
        "answer": "The text.",
        "response": {"task_id": TASK_ID, "attempt": 1, "text": "21 doubled\n"},
        "errors": BY_ID,
    },
    "FabricService.ListWorkers": {
        "id": "listWorkers",
        "tag": "fleet",
        "summary": "List workers",
        "answer": "One page.",
        "response": {
            "workers": [
                {
                    "worker_id": WORKER_ID,
                    "name": "worker-1",
                    "host": "host-1",
                    "pid": 4711,
                    "mode": "push",
                    "state": "active",
                    "queues": ["default"],
                    "runtimes": ["python"],
                    "version": "0.1.0",
                    "slots": 8,
                    "running": 1,
                    "offered": 0,
                    "connected_at": AT,
                    "last_seen_at": FINISHED,
                }
            ],
            "next_page_token": "",
        },
        "errors": [400],
    },
    "FabricService.ListQueues": {
        "id": "listQueues",
        "tag": "fleet",
        "summary": "List queues",
        "answer": "One page.",
        "response": {
            "queues": [{"name": "default", "runtime": "python", "queued": 3, "running": 1}],
            "next_page_token": "",
        },
        "errors": [400],
    },
    "FabricService.GetServerInfo": {
        "id": "getServerInfo",
        "tag": "fleet",
        "summary": "Get what the server is",
        "answer": "Version, durability and limits.",
        "response": {"version": "0.1.0", "durability": "embedded", "max_payload": 67108864, "retention": "86400s"},
        "errors": [400],
    },
}


def _page(name: str, summary: str, answers: dict[int, str], content: Schema, *, public: bool) -> Schema:
    responses: Schema = {str(code): {"description": text, "content": content} for code, text in answers.items()}
    if not public:
        responses |= {code: {"$ref": f"#/components/responses/{code}"} for code in ("401", "403")}
    responses |= {code: {"$ref": f"#/components/responses/{code}"} for code in ("429", "500")}
    return {
        "operationId": name,
        "summary": summary,
        "description": summary + ".",
        "tags": ["pages"],
        "security": [] if public else TOKEN_OR_NONE,
        "responses": responses,
    }


def _json(required: list[str], example: Schema, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "required": required, "properties": properties}
    return {"application/json": {"schema": schema, "example": example}}


_TEXT: Schema = {"type": "string"}
_STATUS: Schema = {"type": "string", "description": "One or a few words."}

PAGES: dict[str, Schema] = {
    "/": _page(
        "index",
        "Say what this is",
        {200: "Name, version and where the other pages are."},
        _json(
            ["service", "version", "durability"],
            {"service": "treadle", "version": "0.1.0", "durability": "embedded", "openapi": "/openapi.json"},
            service=_TEXT,
            version=_TEXT,
            durability=_TEXT,
            openapi=_TEXT,
            health=_TEXT,
            ready=_TEXT,
            metrics=_TEXT,
        ),
        public=False,
    ),
    "/healthz": _page(
        "health",
        "Say whether the process lives",
        {200: "It does."},
        _json(
            ["status"],
            {"status": "ok"},
            status=_STATUS,
            insecure={"type": "boolean", "description": "Set with --insecure."},
        ),
        public=True,
    ),
    "/readyz": _page(
        "ready",
        "Say whether the store answers and the server is not closing",
        {200: "It is ready.", 503: "It is not."},
        _json(
            ["status"],
            {"status": "ready"},
            status=_STATUS,
            error={"type": "string", "description": "Only where no tokens are used."},
        ),
        public=True,
    ),
    "/metrics": _page(
        "metrics",
        "Metrics for Prometheus",
        {200: "Prometheus' text format."},
        {"text/plain": {"schema": _TEXT, "example": "treadle_build_info 1\n"}},
        public=False,
    ),
    "/openapi.json": _page(
        "openapi",
        "This description, in OpenAPI 3.1",
        {200: "The document."},
        {"application/json": {"schema": {"type": "object"}, "example": {"openapi": "3.1.0"}}},
        public=False,
    ),
}
