"""The description of the REST API: what checkers say of it, and what clients made of it get.

The generators are installed by `tools/install.sh openapi`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Union

import pytest
from conftest import Own
from harness.v1 import V1
from importable_zoo import double, raise_value_error

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(os.environ.get("TREADLE_TOOLS", ROOT / ".tools"))
PINS = ROOT / "tools" / "openapi"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
Words = Union[str, Path]


def run(folder: Path, *command: Words, **env: str) -> str:
    """Runs a command and returns what it printed."""
    node = str(TOOLS / "bin")
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "PATH": f"{node}:{os.environ['PATH']}:/usr/local/go/bin", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def v1(own: Own) -> V1:
    """One mode: how workers get their tasks is nothing to the description."""
    assert (TOOLS / "openapi-node").is_dir(), "the generators are missing: run tools/install.sh openapi"
    return own.start("push").v1


@pytest.fixture
def document(v1: V1, tmp_path: Path) -> Path:
    """The document as it is served, with double registered."""
    v1.post("/v1/functions", {"name": "double", "source": "def double(x): return 2 * x"})
    path = tmp_path / "openapi.json"
    path.write_text(v1.request("GET", "/openapi.json").text)
    return path


def test_checkers_find_nothing(document: Path, tmp_path: Path) -> None:
    assert run(tmp_path, TOOLS / "openapi" / "bin" / "python", PINS / "check.py", document) == "ok\n"
    redocly = TOOLS / "openapi-node" / "node_modules" / ".bin" / "redocly"
    run(tmp_path, redocly, "lint", "--max-problems=1000", document, REDOCLY_TELEMETRY="off")


def test_answers_are_as_described(v1: V1, document: Path, tmp_path: Path) -> None:
    function = v1.register(double)
    failed = v1.call(raise_value_error)["task_id"]
    task = v1.call(double, 21)["task_id"]
    calls: list[tuple[str, str, object]] = [
        ("GET", "/v1/functions/{function}", None),
        ("GET", "/v1/functions", None),
        ("POST", "/v1/functions/{function}:call", {"args": [21]}),
        ("POST", "/v1/functions/{function}:call", {"args": 21}),
        ("POST", "/v1/tasks", {"function": function, "args": [1], "options": {"timeout": "500ms"}}),
        ("POST", "/v1/tasks", {"function": "nobody"}),
        ("POST", "/v1/tasks", {"functoin": "double"}),
        ("POST", "/v1/tasks:batch", {"requests": [{"function": function, "args": [1]}, {"function": "nobody"}]}),
        ("GET", "/v1/tasks", None),
        ("GET", "/v1/tasks/{task_id}", None),
        ("GET", "/v1/tasks/{task_id}/result", None),
        ("GET", "/v1/tasks/{task_id}/logs", None),
        ("POST", "/v1/tasks/{task_id}:cancel", None),
        ("GET", "/v1/workers", None),
        ("GET", "/v1/queues", None),
        ("GET", "/v1/info", None),
        ("GET", "/status/{task_id}", None),
        ("GET", "/result/{task_id}", None),
        ("POST", "/register_function", {"name": 5}),
        ("POST", "/execute_function", {"function_id": UNKNOWN, "payload": "gARLKi4="}),
        ("GET", "/", None),
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
    ]
    lines = []
    for subject in (task, failed, UNKNOWN):
        for method, path, body in calls:
            response = v1.request(method, path.format(function=function, task_id=subject), body)
            answer = {"method": method, "path": path, "status": response.status_code, "body": response.json()}
            lines.append(json.dumps(answer))
    watched = v1.request("GET", f"/v1/tasks/{failed}:watch").text.splitlines()
    assert watched
    for line in watched:
        answer = {"method": "GET", "path": "/v1/tasks/{task_id}:watch", "status": 200, "body": json.loads(line)}
        lines.append(json.dumps(answer))
    answers = tmp_path / "answers"
    answers.write_text("\n".join(lines))
    assert run(tmp_path, TOOLS / "openapi" / "bin" / "python", PINS / "check.py", document, answers) == "ok\n"


def test_typescript_client(v1: V1, document: Path, tmp_path: Path) -> None:
    modules = TOOLS / "openapi-node" / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(PINS / "clients" / "double.ts", tmp_path)
    run(tmp_path, modules / ".bin" / "openapi-typescript", document, "-o", "treadle.d.ts")
    options = ["--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom", "--skipLibCheck"]
    (tmp_path / "process.d.ts").write_text("declare const process: { argv: string[] };")
    run(tmp_path, modules / ".bin" / "tsc", *options, "double.ts", "process.d.ts")
    assert run(tmp_path, TOOLS / "bin" / "node", "double.js", v1.base) == "COMPLETED 42\nNOT_FOUND\n"


def test_go_client(v1: V1, document: Path, tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(PINS / name, tmp_path)
    shutil.copy(PINS / "clients" / "double.go.txt", tmp_path / "main.go")
    package = tmp_path / "treadle"
    package.mkdir()
    generator = TOOLS / "bin" / "oapi-codegen"
    options: list[Words] = ["-generate", "types,client", "-package", "treadle", "-o", package / "treadle.go"]
    run(tmp_path, generator, *options, document)
    assert run(tmp_path, "go", "run", ".", v1.base, GOFLAGS="-mod=readonly") == "COMPLETED 42\nNOT_FOUND\n"


def test_python_client(v1: V1, document: Path, tmp_path: Path) -> None:
    programs = TOOLS / "openapi" / "bin"
    name = "--additional-properties=packageName=treadle_api"
    run(tmp_path, programs / "openapi-generator-cli", "generate", "-i", document, "-g", "python", "-o", "api", name)
    client = PINS / "clients" / "double.py"
    printed = run(tmp_path, programs / "python", client, v1.base, PYTHONPATH=str(tmp_path / "api"))
    assert printed == "COMPLETED 42\nNOT_FOUND\n"
