"""Tokens, roles and TLS: a cluster that others can reach, and what those who may not get from it."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import grpc
import pytest
from harness import procfs
from harness.fabric import PYTHON, QUICK
from harness.functions import starts, wait_starts
from harness.process import BINARY, Process, environment
from harness.root import S
from harness.v1 import V1
from harness.wait import until
from importable_zoo import double, note_and_wait

ROLES = ("client", "worker", "admin")


class Secured:
    """`up` with TLS, certificates for workers and tokens, made as its operator would make them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.certs = folder / "certs"
        self.token_file = folder / "tokens.json"
        self.processes: list[Process] = []
        self.run("certs", "--dir", str(self.certs), "--host", "fabric.test")
        self.tokens = {role: self.create(role) for role in ROLES}
        self.up = self.start("up", "up", "--slots", "0", *self.server_flags(), *QUICK)
        ready = self.up.ready()
        self.grpc_addr, self.http_addr = ready["grpc_addr"], ready["http_addr"]

    def run(self, *args: str) -> str:
        """What a command that must succeed prints on standard output."""
        done = subprocess.run(
            [str(BINARY), *args], capture_output=True, text=True, timeout=30, env=environment(self.folder), check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def create(self, role: str) -> str:
        return self.run("token", "create", "--role", role, "--file", str(self.token_file))

    def revoke(self, token: str) -> None:
        self.run("token", "revoke", token.split("_")[1], "--file", str(self.token_file))

    def pem(self, name: str) -> str:
        return str(self.certs / f"{name}.pem")

    def server_flags(self) -> list[str]:
        flags = ["--json", "--log-level", "debug", "--data-dir", str(self.folder / "data")]
        flags += ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--token-file", str(self.token_file)]
        flags += ["--tls-cert", self.pem("server"), "--tls-key", self.pem("server-key")]
        return [*flags, "--tls-client-ca", self.pem("ca"), *PYTHON]

    def start(self, name: str, *args: str, token: str = "") -> Process:
        process = Process(name, list(args), self.folder, env={"TREADLE_TOKEN": token} if token else None)
        self.processes.append(process)
        return process

    def worker(
        self, token: str, *, mode: str = "push", pair: str = "worker", ca: bool = True, dispatcher: str = ""
    ) -> Process:
        """Starts a worker that shows a pair of the folder of certificates (none when empty)."""
        flags = ["worker", "--mode", mode, "--dispatcher", dispatcher or self.grpc_addr, "--slots", "1"]
        flags += ["--log-level", "debug", "--data-dir", str(self.folder / "data"), *PYTHON]
        if ca:
            flags += ["--tls-ca", self.pem("ca")]
        if ca and pair:
            flags += ["--tls-cert", self.pem(pair), "--tls-key", self.pem(f"{pair}-key")]
        return self.start(f"worker-{len(self.processes)}", *flags, token=token)

    def v1(self, role: str = "client") -> V1:
        return V1(f"https://{self.http_addr}", token=self.tokens.get(role, role), ca=self.pem("ca"))

    def attached(self, worker: Process) -> bool:
        workers = self.v1().get("/v1/workers")["workers"]
        return any(w["pid"] == worker.pid and w["state"] == "active" for w in workers)

    def close(self) -> None:
        for process in self.processes:
            process.stop()
        until(lambda: not procfs.mentioning(str(self.folder)), f"the end of all processes of {self.folder}", timeout=5)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    cluster = Secured(tmp_path / "secured")
    try:
        yield cluster
    finally:
        cluster.close()


def ends_saying(process: Process, text: str) -> None:
    """A worker that can never attach ends by itself, with exit code 1 and the cause."""
    assert process.exit_code() == 1
    assert text in process.log()


def says(process: Process, pattern: str) -> str:
    """Waits until a line of the log matches; returns the line."""

    def line() -> Optional[str]:
        assert process.running, f"{process.name} ended:\n{process.log()}"
        return next((text for text in process.log().splitlines() if re.search(pattern, text)), None)

    return until(line, f"a line with {pattern!r} in the log of {process.name}")


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_a_cluster_with_tls_and_tokens(secured: Secured, mode: str) -> None:
    """Registered, executed and fetched by REST in both forms; run by a worker over mutual TLS."""
    worker = secured.worker(secured.tokens["worker"], mode=mode)
    until(lambda: secured.attached(worker), "the worker to be attached")
    v1 = secured.v1()
    assert v1.call(double, 21)["result"] == 42

    def root(method: str, path: str, body: Optional[dict[str, str]] = None) -> dict[str, str]:
        resp = v1.request(method, path, body)
        assert resp.status_code == 200, resp.text
        answer: dict[str, str] = resp.json()
        return answer

    function_id = root("POST", "/register_function", {"name": "double", "payload": S(double)})["function_id"]
    task = root("POST", "/execute_function", {"function_id": function_id, "payload": S(((21,), {}))})["task_id"]
    until(lambda: root("GET", f"/status/{task}")["status"] == "COMPLETED", "the task to complete")
    assert root("GET", f"/result/{task}")["result"] == S(42)
    assert secured.v1("").request("GET", "/healthz").status_code == 200


def test_roles_over_rest(secured: Secured) -> None:
    for token, status in (
        ("", 401),
        ("tdl_0000000000000000_" + "a" * 52, 401),
        ("worker", 403),
        ("admin", 200),
        ("client", 200),
    ):
        for path in ("/v1/tasks", "/v1/info", "/v1/workers"):
            assert secured.v1(token).request("GET", path).status_code == status, (token, path)
    refused = secured.v1("worker").request("POST", "/v1/tasks", {"function": "double"})
    assert refused.status_code == 403
    assert refused.json()["error"]["reason"] == "DENIED"
    # 401 comes before any look at the path or the body.
    for method, path in (("GET", "/v1/nothing"), ("POST", "/execute_function"), ("GET", "/metrics"), ("GET", "/")):
        assert secured.v1("").request(method, path).status_code == 401, path


def test_roles_over_grpc(secured: Secured) -> None:
    """A generic client: reflection takes any token, health none."""
    ca = Path(secured.pem("ca")).read_bytes()
    with grpc.secure_channel(secured.grpc_addr, grpc.ssl_channel_credentials(ca)) as channel:

        def call(method: str, token: str, request: bytes = b"") -> grpc.StatusCode:
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            try:
                channel.unary_unary(method, bytes, bytes)(request, metadata=metadata, timeout=20)
            except grpc.RpcError as err:
                code: grpc.StatusCode = err.code()
                return code
            return grpc.StatusCode.OK

        tasks = "/treadle.v1.FabricService/ListTasks"
        assert call("/grpc.health.v1.Health/Check", "") == grpc.StatusCode.OK
        assert call(tasks, "") == grpc.StatusCode.UNAUTHENTICATED
        assert call(tasks, secured.tokens["worker"]) == grpc.StatusCode.PERMISSION_DENIED
        assert call(tasks, secured.tokens["client"]) == grpc.StatusCode.OK
        reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        list_services = b":\x00"
        assert call(reflection, "", list_services) == grpc.StatusCode.UNAUTHENTICATED
        assert call(reflection, secured.tokens["worker"], list_services) == grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("token", "pair", "expected"),
    [
        ("client", "worker", r"a client token \([0-9a-f]{16}\) may not call /treadle.v1.WorkerService/Push"),
        ("", "worker", "this server asks for a token"),
        ("worker", "", "this server requires a client certificate from workers"),
        ("worker", "client", "the certificate of this worker was made for a client"),
    ],
    ids=["token of a client", "no token", "no certificate", "certificate of a client"],
)
def test_workers_that_are_refused(secured: Secured, token: str, pair: str, expected: str) -> None:
    """They say why, go on trying, and are never attached."""
    worker = secured.worker(secured.tokens[token] if token else "", pair=pair)
    line = says(worker, expected)
    assert "level=WARN" in line, line
    assert not secured.attached(worker)


NESTED = """
import os, treadle

def parent(x):
    with treadle.Client() as client:
        child = client.register_source("child", "def child(x):\\n    return 2 * x")
        record = client.task(client.submit(child, x).task_id)
        try:
            client.info()
        except treadle.PermissionDenied as exc:
            refused = str(exc)
        return [child(x), record.created_by, refused, [name for name in os.environ if name.startswith("TREADLE")]]
"""


@pytest.mark.parametrize("mode", ["push", "pull", "local"])
def test_tasks_submit_tasks_over_tls(secured: Secured, mode: str) -> None:
    """With the public certificate of the CA and a token of their own, for the client that they belong to."""
    if mode == "local":
        secured.up.stop()
        secured.up = secured.start("up", "up", "--slots", "2", *secured.server_flags(), *QUICK)
        ready = secured.up.ready()
        secured.grpc_addr, secured.http_addr = ready["grpc_addr"], ready["http_addr"]
    else:
        workers = [secured.worker(secured.tokens["worker"], mode=mode) for _ in range(2)]
        until(lambda: all(map(secured.attached, workers)), "the workers to be attached")
    v1 = secured.v1()
    made = v1.post("/v1/functions", {"name": "parent", "source": NESTED})
    answer = v1.call(made["function_id"], 21)
    assert answer["status"] == "COMPLETED", answer
    value, owner, refused, settings = answer["result"]
    assert value == 42 and settings == []
    assert owner == secured.tokens["client"].split("_")[1]
    assert "a task token" in refused
    for process in secured.processes:
        assert "tdt_" not in process.log()


def test_plain_text_meets_tls(secured: Secured) -> None:
    """Both sides are told what is wrong, whichever of them speaks TLS."""
    ends_saying(
        secured.worker(secured.tokens["worker"], ca=False), "this listener speaks TLS and the client plain text"
    )
    plain = secured.start("plain", "up", "--store", "memory:", "--slots", "0", "--json", "--grpc-addr", "127.0.0.1:0",
                          "--http-addr", "127.0.0.1:0")  # fmt: skip
    address = plain.ready()["grpc_addr"]
    worker = secured.worker(secured.tokens["worker"], dispatcher=address)
    ends_saying(worker, "the dispatcher speaks plain text and this worker TLS")


def test_revoked_token(secured: Secured, tmp_path: Path) -> None:
    """A worker whose token is revoked loses its stream; what it runs is run by another."""
    spare = secured.create("worker")
    revoked = secured.worker(spare)
    until(lambda: secured.attached(revoked), "the worker to be attached")
    v1 = secured.v1()
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task = v1.submit(note_and_wait, str(notes), str(gate), 7)
    first = wait_starts(notes, 1)[0]

    secured.revoke(spare)
    line = says(revoked, "the token is not accepted: it is not known here, or was revoked")
    assert "does not admit this worker" in line and "treadle token create" in line
    says(secured.up, 'worker (lost|detached).* reason="the token is not accepted')
    until(lambda: not secured.attached(revoked), "the dispatcher to give the worker up")
    until(lambda: not procfs.exists(first.pid), "the worker to give up what it runs")
    heir = secured.worker(secured.tokens["worker"])
    wait_starts(notes, 2)
    gate.touch()
    assert v1.value(task) == 7
    assert len(starts(notes)) == 2
    assert secured.attached(heir)

    client = secured.create("client")
    late = secured.v1(client)
    until(lambda: late.request("GET", "/v1/tasks").status_code == 200, "the new token to be known")
    secured.revoke(client)
    until(lambda: late.request("GET", "/v1/tasks").status_code == 401, "the token to be refused")
    assert v1.request("GET", "/v1/tasks").status_code == 200


def test_hangup_reads_tokens_again(secured: Secured) -> None:
    """SIGHUP does not end a server that has files to read again."""
    before = secured.up.log().count("tokens loaded")
    secured.up.signal(signal.SIGHUP)
    until(lambda: secured.up.log().count("tokens loaded") > before, "the tokens to be read")
    assert secured.v1().request("GET", "/v1/tasks").status_code == 200


def test_secrets_stay_secret(secured: Secured) -> None:
    """No token is in a log, on a command line, in a stored file or in the environment of a function."""
    worker = secured.worker(secured.tokens["worker"])
    until(lambda: secured.attached(worker), "the worker to be attached")
    refused = secured.worker(secured.tokens["client"])
    says(refused, "may not call")
    v1 = secured.v1()

    def settings() -> list[str]:
        import os

        return [name for name in os.environ if name.startswith("TREADLE_")]

    assert v1.call(settings)["result"] == []
    assert secured.v1("worker").request("POST", "/v1/tasks", {}).status_code == 403

    secrets = [token.split("_")[2] for token in secured.tokens.values()]
    keys = ["".join((secured.certs / f"{name}-key.pem").read_text().split("\n")[1:-2]) for name in ("server", "worker")]
    assert all(len(secret) == 52 for secret in secrets)
    assert all(len(key) > 100 for key in keys)
    commands = procfs.mentioning(str(secured.folder))
    assert {secured.up.pid, worker.pid, refused.pid} <= set(commands)
    for secret in [*secrets, *keys]:
        assert not [pid for pid, command in commands.items() if secret in command]
        for folder, _, names in os.walk(secured.folder):
            for name in names:
                path = Path(folder) / name
                if path.parent != secured.certs:
                    assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("flags", "missing", "fix"),
    [
        ([], "without TLS and tokens", "--tls-cert and --tls-key"),
        (["--token-file", "tokens.json"], "without TLS,", "--tls-cert and --tls-key"),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "without tokens,", "--token-file"),
    ],
    ids=["nothing", "tokens only", "TLS only"],
)
@pytest.mark.parametrize("listener", ["--grpc-addr", "--http-addr"])
def test_other_machines_need_tls_and_tokens(
    tmp_path: Path, listener: str, flags: list[str], missing: str, fix: str
) -> None:
    other = ["--grpc-addr", "--http-addr"]
    other.remove(listener)
    done = subprocess.run(
        [str(BINARY), "up", "--store", "memory:", "--slots", "0", listener, "0.0.0.0:0", *other, "127.0.0.1:0", *flags],
        capture_output=True, text=True, timeout=30, env=environment(tmp_path), check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    for part in (f"{listener} 0.0.0.0:0 is not loopback", missing, fix, "--insecure"):
        assert part in done.stderr, done.stderr


def test_rate_limit(tmp_path: Path) -> None:
    """Over the limit, 429 says when to come back; another token is not held up."""
    folder = tmp_path / "limited"
    folder.mkdir()
    tokens = folder / "tokens.json"

    def create() -> str:
        args = [str(BINARY), "token", "create", "--role", "client", "--file", str(tokens)]
        return subprocess.run(args, capture_output=True, text=True, check=True, env=environment(folder)).stdout.strip()

    one, two = create(), create()
    flags = ["--store", "memory:", "--slots", "0", "--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]
    up = Process("up", ["up", *flags, "--token-file", str(tokens), "--rate-limit", "0.01"], folder)
    try:
        base = f"http://{up.ready()['http_addr']}"
        body = {"name": "double", "source": "def double(x):\n    return 2 * x\n"}
        assert V1(base, token=one).request("POST", "/v1/functions", body).status_code == 200
        over = V1(base, token=one).request("POST", "/v1/functions", body)
        assert over.status_code == 429, over.text
        assert over.json()["error"]["reason"] == "RATE_LIMITED"
        assert 90 <= int(over.headers["Retry-After"]) <= 100
        assert V1(base, token=one).request("GET", "/v1/functions/double").status_code == 429  # reading counts as well
        assert V1(base).request("GET", "/healthz").status_code == 200
        assert V1(base, token=two).request("POST", "/v1/functions", body).status_code == 200
    finally:
        up.stop()


def test_quotas(tmp_path: Path) -> None:
    """A token that has its share is told so and can make room; another one has its own. Records say whose they are."""
    folder = tmp_path / "quotas"
    folder.mkdir()
    tokens = folder / "tokens.json"

    def create() -> str:
        args = [str(BINARY), "token", "create", "--role", "client", "--file", str(tokens)]
        return subprocess.run(args, capture_output=True, text=True, check=True, env=environment(folder)).stdout.strip()

    one, two = create(), create()
    flags = ["--data-dir", str(folder / "data"), "--slots", "0", "--json", "--grpc-addr", "127.0.0.1:0"]
    flags += ["--http-addr", "127.0.0.1:0", "--token-file", str(tokens), "--quota-tasks", "2", "--quota-functions", "1"]

    def use(token: str, process: Process) -> V1:
        return V1(f"http://{process.ready()['http_addr']}", token=token)

    body = {"name": "double", "source": "def double(x):\n    return 2 * x\n"}
    up = Process("up", ["up", *flags], folder)
    try:
        v1 = use(one, up)
        registered = v1.request("POST", "/v1/functions", body)
        assert registered.status_code == 200, registered.text
        assert registered.json()["created_by"] == one.split("_")[1]
        over = v1.request("POST", "/v1/functions", body)
        assert over.status_code == 429 and over.json()["error"]["reason"] == "QUOTA_EXCEEDED", over.text
        tasks = [v1.request("POST", "/v1/tasks", {"function": "double", "args": [n]}) for n in range(3)]
        assert [t.status_code for t in tasks] == [200, 200, 429], tasks
        message = tasks[2].json()["error"]["message"]
        assert "2 unfinished tasks" in message and "--quota-tasks" in message, message
        assert use(two, up).request("POST", "/v1/tasks", {"function": "double", "args": [1]}).status_code == 200
        shown = subprocess.run(
            [str(BINARY), "status", tasks[0].json()["task_id"], "--address", str(up.ready()["grpc_addr"])],
            capture_output=True, text=True, check=True, env={**environment(folder), "TREADLE_TOKEN": one},
        )  # fmt: skip
        assert re.search(rf"^created by +{one.split('_')[1]}$", shown.stdout, re.MULTILINE), shown.stdout
    finally:
        up.stop()
    up = Process("up", ["up", *flags], folder)
    try:
        v1 = use(one, up)
        again = v1.request("POST", "/v1/tasks", {"function": "double", "args": [1]})
        assert again.status_code == 429, "what was stored before the restart counts"
        cancelled = v1.request("POST", f"/v1/tasks/{tasks[0].json()['task_id']}:cancel")
        assert cancelled.json()["created_by"] == one.split("_")[1]
        assert v1.request("POST", "/v1/tasks", {"function": "double", "args": [1]}).status_code == 200
    finally:
        up.stop()
