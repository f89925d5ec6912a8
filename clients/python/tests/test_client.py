"""Addresses, tokens, errors and records."""

from __future__ import annotations

import datetime
import http.server
import operator
import pickle
import re
import socket
import threading

import grpc
import pytest
import treadle
from fake_fabric import FakeFabric, Fault
from treadle import _address, records
from treadle._gen.treadle.v1 import fabric_pb2 as pb


def test_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with treadle.Client() as client:
        assert client.address == "127.0.0.1:50051"
    monkeypatch.setenv("TREADLE_ADDRESS", "example.org:1")
    with treadle.Client() as client:
        assert client.address == "example.org:1"
    with treadle.Client("other:2") as client:
        assert client.address == "other:2"


def test_token(fabric: FakeFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_TOKEN", "from the environment\n")  # as files of secrets end
    with treadle.Client(fabric.address) as client:
        client.info()
        assert fabric.metadata["authorization"] == "Bearer from the environment"
        assert fabric.metadata["user-agent"].startswith("treadle-python/")
    with treadle.Client(fabric.address, token="given") as client:
        assert client.submit(operator.neg, 1).result(10) == -1
        assert fabric.metadata["authorization"] == "Bearer given", "streams carry it too"
    with treadle.Client(fabric.address, token="") as client:
        client.info()
        assert "authorization" not in fabric.metadata


@pytest.mark.parametrize("address", ["example.org:50051", "10.0.0.1:1", "dns:///example.org:1", "[2001:db8::1]:1"])
def test_a_token_does_not_travel_in_the_clear(address: str) -> None:
    with pytest.raises(ValueError, match="TREADLE_TLS_CA"):
        treadle.Client(address, token="secret")
    treadle.Client(address, token="secret", insecure=True).close()
    treadle.Client(address, token="secret", tls=True).close()
    treadle.Client(address, token="secret", tls=grpc.ssl_channel_credentials()).close()
    treadle.Client(address).close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "::1", "unix:/run/t.sock", "dns:///localhost:1", "ipv4:127.1.2.3:1"],
)
def test_loopback(address: str) -> None:
    assert _address.is_loopback(address)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad", "INVALID_REQUEST"), treadle.InvalidRequest),
        (Fault(grpc.StatusCode.NOT_FOUND, "none", "NOT_FOUND"), treadle.NotFound),
        (Fault(grpc.StatusCode.ALREADY_EXISTS, "again", "REQUEST_ID_CONFLICT"), treadle.Conflict),
        (Fault(grpc.StatusCode.FAILED_PRECONDITION, "no", "ILLEGAL_STATE"), treadle.IllegalState),
        (Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "large", "TOO_LARGE"), treadle.TooLarge),
        (Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "EXHAUSTED"), treadle.Exhausted),
        (Fault(grpc.StatusCode.UNAUTHENTICATED, "who", "UNAUTHENTICATED"), treadle.Unauthenticated),
        (Fault(grpc.StatusCode.PERMISSION_DENIED, "not you", "DENIED"), treadle.PermissionDenied),
        (Fault(grpc.StatusCode.INTERNAL, "oops", "INTERNAL"), treadle.TreadleError),
    ],
)
def test_errors(fabric: FakeFabric, client: treadle.Client, fault: Fault, expected: type[treadle.TreadleError]) -> None:
    fabric.fail("GetServerInfo", fault)
    with pytest.raises(treadle.TreadleError, match=fault.message) as info:
        client.info()
    assert type(info.value) is expected
    assert info.value.reason == fault.reason


def test_calls_outlast_a_short_outage(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.fail("GetServerInfo", Fault(grpc.StatusCode.UNAVAILABLE), Fault(grpc.StatusCode.UNAVAILABLE))
    assert client.info() == treadle.ServerInfo("fake", "memory", 64 << 20, 0.0)


def test_pages(fabric: FakeFabric, client: treadle.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(client.map(operator.neg, range(2500)))) == 2500
    assert len({t.task_id for t in client.tasks()}) == 2500
    assert len(list(client.tasks(limit=1200))) == 1200
    assert list(client.tasks(limit=0)) == []


def test_does_not_travel(client: treadle.Client) -> None:
    with pytest.raises(TypeError, match="on the worker"):
        pickle.dumps(client)
    function = client.register(operator.neg)
    assert pickle.loads(pickle.dumps(function)) is operator.neg, "the plain function does"
    with pytest.raises(TypeError, match="registered function 'neg'"):
        pickle.dumps(client.function(function.id))


def test_functions_are_called_like_functions(fabric: FakeFabric, client: treadle.Client) -> None:
    @client.register
    def double(x: int, *, plus: int = 0) -> int:
        return 2 * x + plus

    assert double(21, plus=1) == 43
    assert list(double.map([1, 2])) == [2, 4]
    assert double.submit(3).result(10) == 6
    assert client.function("double").id == double.id
    with pytest.raises(treadle.InvalidRequest):
        client.register(double)


def test_unknown_options(client: treadle.Client) -> None:
    with pytest.raises(TypeError):
        client.options(prio=1)


def test_options_to_proto() -> None:
    assert treadle.Options().to_proto() is None
    made = treadle.Options(timeout=datetime.timedelta(minutes=1), deadline=datetime.timedelta(hours=1)).to_proto()
    assert made is not None and made.timeout.seconds == 60
    in_an_hour = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    assert abs(made.deadline.ToDatetime(tzinfo=datetime.timezone.utc) - in_an_hour).total_seconds() < 60
    noon = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    made = treadle.Options(deadline=noon, memory_limit=1 << 30, function_retries=0).to_proto()
    assert made is not None and made.deadline.ToDatetime() == datetime.datetime(2030, 1, 1, 10)
    assert made.memory_limit == 1 << 30 and made.HasField("function_retries")
    for bad in (treadle.Options(priority=1 << 40), treadle.Options(timeout="soon")):  # type: ignore[arg-type]
        with pytest.raises(treadle.InvalidRequest):
            bad.to_proto()


def test_records() -> None:
    message = pb.Task(task_id="t", status=pb.Task.RUNNING, attempts=[pb.Attempt(number=1, worker="w", end="lost")])
    message.created_at.FromSeconds(0)
    message.options.priority = 0
    task = records.task_of(message)
    assert task.status is treadle.Status.RUNNING and str(task.status) == "RUNNING"
    assert task.created_at == datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    assert task.finished_at is None
    assert task.attempts == (treadle.Attempt(1, "w", None, None, "lost", ""),)
    assert task.options == treadle.Options(priority=0)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fabric", "fabric:50051"),
        ("fabric:1", "fabric:1"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:7", "[::1]:7"),
        ("unix:/run/t.sock", "unix:/run/t.sock"),
        ("dns:///fabric:1", "dns:///fabric:1"),
    ],
)
def test_addresses(given: str, meant: str) -> None:
    with treadle.Client(given) as client:
        assert client.address == meant


@pytest.mark.parametrize(
    "given", ["http://127.0.0.1:8000", "a:b", "a:0", "a:65536", "a:", ":1", "a b:1", "[::1", "a/b", " ", "a:\u0661"]
)
def test_malformed_addresses(given: str) -> None:
    with pytest.raises(ValueError, match='want "host:port"'):
        treadle.Client(given)


def test_an_unknown_host_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with treadle.Client("no-such-host.invalid:1", timeout=60) as client:
        with pytest.raises(treadle.Unavailable, match="there is no host 'no-such-host.invalid'"):
            client.info()


def test_the_rest_port_is_told_at_once() -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with treadle.Client(f"127.0.0.1:{server.server_port}", timeout=30) as client:
            with pytest.raises(treadle.Unavailable, match="8000 is the REST port; gRPC is 50051"):
                client.info()
            with pytest.raises(treadle.Unavailable, match="8000 is the REST port; gRPC is 50051"):
                client.submit(operator.neg, 1).result(20)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unused_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "localhost:{}", "dns:///127.0.0.1:{}", "ipv4:127.0.0.1:{}", "unix:/no/such.sock"]
)
def test_a_refused_connection_is_told_at_once(form: str) -> None:
    address = form.format(unused_port())
    # A wait for the timeout would end the test.
    with treadle.Client(address, timeout=1000) as client:
        with pytest.raises(
            treadle.Unavailable, match=f"GetServerInfo: nothing listens at {re.escape(address)} .*: start a server"
        ):
            client.info()
        with pytest.raises(treadle.Unavailable, match="nothing listens at"):
            client.submit(operator.neg, 1).result(60)


@pytest.mark.parametrize("answer", ["a result", "a refusal"])
def test_a_server_that_restarts_in_a_session_is_waited_for(answer: str) -> None:
    fake = FakeFabric()  # type: ignore[abstract]
    address = fake.start()
    with treadle.Client(address, timeout=60) as client:
        if answer == "a result":
            client.submit(operator.neg, 1).result(60)
        else:
            with pytest.raises(treadle.NotFound):
                client.task("00000000-0000-4000-8000-000000000000")
        fake.stop()
        future = client.submit(operator.neg, 2)
        with pytest.raises(TimeoutError):
            future.result(0.3)
        fake.start(address)
        try:
            assert future.result(60) == -2
        finally:
            fake.stop()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("deadline", "tomorrow"),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", 1e300),
        ("timeout", "5s"),
        ("priority", 1.5),
        ("max_retries", 1 << 40),
        ("memory_limit", "1g"),
    ],
)
def test_a_bad_option_is_named(client: treadle.Client, option: str, value: object) -> None:
    with pytest.raises(treadle.InvalidRequest) as info:
        client.options(**{"priority": 3, "timeout": 1, option: value}).submit(operator.neg, 1)
    assert str(info.value).startswith(f"options.{option} = {value!r}: want ")


@pytest.mark.parametrize("token", ["caf\xe9", "a\nb", "\ud800"])
def test_a_token_that_no_header_can_carry(token: str) -> None:
    with pytest.raises(ValueError, match="the token .* has a character at index") as refused:
        treadle.Client("127.0.0.1:1", token=token)
    assert token not in str(refused.value), "a token is shown to nobody"


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "30"])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout=.*: want seconds, 0 or more"):
        treadle.Client("127.0.0.1:1", timeout=timeout)
