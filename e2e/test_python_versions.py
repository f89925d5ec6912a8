"""Functions pickled by value belong to one version of Python."""

import base64
import sys

import cloudpickle
import pytest
from harness.fabric import Fabric
from harness.v1 import V1, Json

OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


def register(v1: V1, python: str) -> Json:
    # Other bytes for each version, as in life: runners keep functions by their bytes.
    function = cloudpickle.dumps(lambda x, note=python: 2 * x, protocol=4)
    payload = base64.b64encode(function).decode()
    return v1.post("/v1/functions", {"name": "double", "payload": payload, "python": python})


@pytest.mark.parametrize("python", ["", OURS])
def test_same_version(shared: Fabric, python: str) -> None:
    function = register(shared.v1, python)
    assert function.get("python", "") == python
    assert shared.v1.call(function["function_id"], 21)["result"] == 42


def test_another_version(shared: Fabric) -> None:
    """Refused before any of its bytecode runs, in words that help; other functions go on."""
    v1 = shared.v1
    function = register(v1, "3.2")
    answer = v1.call(function["function_id"], 21)
    assert answer["status"] == "FAILED"
    error = answer["error"]
    assert error["error_type"] == "SerializationError"
    for words in ("Python 3.2", f"Python {OURS}", "--python PATH", "source"):
        assert words in error["message"], error["message"]
    assert v1.task(answer["task_id"])["attempt_count"] == 1
    assert v1.call(register(v1, OURS)["function_id"], 21)["result"] == 42
