"""gRPC as a third party speaks it: an address and reflection, no generated code."""

import base64
import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from harness.fabric import Fabric
from harness.functions import wait_starts
from harness.reflection import Generic, Json
from importable_zoo import note_and_wait

FABRIC = "treadle.v1.FabricService"
ROOT = "treadle.v1.RootService"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def generic(shared: Fabric) -> Iterator[Generic]:
    client = Generic(shared.grpc_addr)
    yield client
    client.close()


def b64(value: object) -> str:
    """bytes as protobuf's JSON has them."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.b64encode(data).decode()


def value(result: Json) -> object:
    assert result["status"] == "COMPLETED", result
    return json.loads(base64.b64decode(result["result"]))


def register(generic: Generic, source: str) -> str:
    function = generic.call(f"{FABRIC}/RegisterFunction", {"name": "f", "source": source})
    function_id: str = function["function_id"]
    return function_id


def test_services(generic: Generic) -> None:
    services = generic.services()
    assert {FABRIC, ROOT, "treadle.v1.WorkerService", "grpc.health.v1.Health"} <= set(services)
    assert any(service.startswith("grpc.reflection.") for service in services)
    assert {"Push", "Pull"} <= set(generic.methods("treadle.v1.WorkerService"))


def test_health(generic: Generic) -> None:
    for service in ("", FABRIC, ROOT):
        assert generic.call("grpc.health.v1.Health/Check", {"service": service})["status"] == "SERVING"
    with pytest.raises(grpc.RpcError) as failure:
        generic.call("grpc.health.v1.Health/Check", {"service": "no.such.Service"})
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


def test_register_execute_result(generic: Generic) -> None:
    function = register(generic, "def f(x): return 2 * x")
    task = generic.call(f"{FABRIC}/Execute", {"function": function, "args": b64([21])})
    assert task["status"] in ("QUEUED", "RUNNING")
    result = generic.call(f"{FABRIC}/GetResult", {"task_id": task["task_id"], "wait": "30s"})
    assert value(result) == 42
    record = generic.call(f"{FABRIC}/GetTask", {"task_id": task["task_id"]})
    assert record["status"] == "COMPLETED"
    assert value(generic.call(f"{FABRIC}/Call", {"function": function, "input": {"args": b64([2**70])}})) == 2**71


def test_pickles_stay_bytes(generic: Generic) -> None:
    function = register(generic, "def f(*args, **kwargs): return args, kwargs")
    payload = b64(pickle.dumps(((1, 2), {"k": {3}})))
    task = generic.call(f"{FABRIC}/Execute", {"function": function, "payload": payload})
    result = generic.call(f"{FABRIC}/GetResult", {"task_id": task["task_id"], "wait": "30s"})
    assert pickle.loads(base64.b64decode(result["result_pickle"])) == ((1, 2), {"k": {3}})


def test_batch_and_await(generic: Generic) -> None:
    """Many tasks in one call, their results in one stream, each once."""
    function = register(generic, "def f(x): return x * x")
    batch = {"requests": [{"function": function, "args": b64([n])} for n in range(1000)]}
    items = generic.call(f"{FABRIC}/ExecuteBatch", batch)["items"]
    ids = [item["task_id"] for item in items]
    assert len(set(ids)) == 1000
    results: dict[str, object] = {}
    for answer in generic.stream(f"{FABRIC}/AwaitResults", {"task_ids": ids}):
        for result in answer["results"]:
            assert result["task_id"] not in results, "sent twice"
            results[result["task_id"]] = value(result)
    assert [results[task_id] for task_id in ids] == [n * n for n in range(1000)]


def test_watch_and_cancel(shared: Fabric, generic: Generic, tmp_path: Path) -> None:
    function = shared.v1.register(note_and_wait)
    args = b64([str(tmp_path / "notes"), str(tmp_path / "never")])
    task_id = generic.call(f"{FABRIC}/Execute", {"function": function, "args": args})["task_id"]
    wait_starts(tmp_path / "notes", 1)
    seen = []
    for record in generic.stream(f"{FABRIC}/WatchTask", {"task_id": task_id}):
        seen.append(record["status"])
        if record["status"] == "RUNNING":
            assert generic.call(f"{FABRIC}/CancelTask", {"task_id": task_id})["status"] == "CANCELLED"
    assert seen[-2:] == ["RUNNING", "CANCELLED"]


def test_lists(generic: Generic) -> None:
    function = register(generic, "def f(x): return x")
    for n in range(3):
        generic.call(f"{FABRIC}/Call", {"function": function, "input": {"args": b64([n])}})
    request = {"filter": f"function = {function} AND status = COMPLETED", "page_size": 2}
    first = generic.call(f"{FABRIC}/ListTasks", request)
    second = generic.call(f"{FABRIC}/ListTasks", {**request, "page_token": first["next_page_token"]})
    assert (len(first["tasks"]), len(second["tasks"])) == (2, 1)
    assert generic.call(f"{FABRIC}/ListWorkers", {})["workers"][0]["slots"] == 4
    assert generic.call(f"{FABRIC}/GetServerInfo", {})["durability"] == "embedded"


def test_root_service(generic: Generic) -> None:
    """The root routes are a gRPC service, too."""
    from harness.root import L, S
    from importable_zoo import double

    function = generic.call(f"{ROOT}/RegisterRoot", {"name": "double", "payload": S(double)})["function_id"]
    task_id = generic.call(f"{ROOT}/ExecuteRoot", {"function_id": function, "payload": S(((21,), {}))})["task_id"]
    generic.call(f"{FABRIC}/GetResult", {"task_id": task_id, "wait": "30s"})
    assert L(generic.call(f"{ROOT}/GetRootResult", {"task_id": task_id})["result"]) == 42


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("Execute", {"function": UNKNOWN}, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ("Execute", {}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ("GetTask", {"task_id": UNKNOWN}, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ("GetTask", {"task_id": "no id"}, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ("ListTasks", {"filter": "bogus"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (
            "RegisterFunction",
            {"name": "f", "payload": b64(b"no pickle")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_PAYLOAD",
        ),
        ("RegisterFunction", {"name": "f"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
def test_errors(generic: Generic, method: str, request_: Json, code: grpc.StatusCode, reason: str) -> None:
    """A google.rpc.Status with exactly one ErrorInfo."""
    with pytest.raises(grpc.RpcError) as failure:
        generic.call(f"{FABRIC}/{method}", request_)
    error = failure.value
    assert error.code() is code, error
    assert error.details()
    assert [(info.domain, info.reason) for info in error_infos(error)] == [("treadle.dev", reason)]


def error_infos(error: grpc.RpcError) -> list[error_details_pb2.ErrorInfo]:
    """The ErrorInfos among an error's details."""
    metadata = {item.key: item.value for item in error.trailing_metadata()}
    found = []
    for detail in status_pb2.Status.FromString(metadata["grpc-status-details-bin"]).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            found.append(info)
    return found


def test_request_id(generic: Generic) -> None:
    function = register(generic, "def f(x): return x")
    request = {"function": function, "args": b64([1]), "request_id": str(uuid.uuid4())}
    assert (
        generic.call(f"{FABRIC}/Execute", request)["task_id"] == generic.call(f"{FABRIC}/Execute", request)["task_id"]
    )
    with pytest.raises(grpc.RpcError) as failure:
        generic.call(f"{FABRIC}/Execute", {**request, "args": b64([2])})
    assert failure.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_oversize_is_refused_with_its_name(generic: Generic) -> None:
    function = register(generic, "def f(x): return x")
    request = {"function": function, "payload": b64(pickle.dumps(b"x" * (64 << 20)))}
    with pytest.raises(grpc.RpcError) as failure:
        generic.call(f"{FABRIC}/Execute", request)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "64" in (failure.value.details() or "")
