"""From results to values and exceptions."""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle import _pickling, _results
from treadle._gen.treadle.v1 import fabric_pb2 as pb

TRACE = 'Traceback (most recent call last):\n  File "job.py", line 3, in job\nValueError: bad\n'


def completed(**fields: Any) -> _results.Outcome:
    return _results.outcome(pb.TaskResult(status=pb.Task.COMPLETED, **fields), _pickling.loads)


def failed(load: _results.Loader = _pickling.loads, **fields: Any) -> BaseException:
    error = pb.TaskError(error_type="FunctionExecutionFailure", traceback=TRACE, task_id="t1", **fields)
    found = _results.outcome(pb.TaskResult(status=pb.Task.FAILED, error=error), load).error
    assert found is not None
    return found


class Own(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Fatal(BaseException):
    pass


class Broken(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("one argument")


def test_values() -> None:
    assert completed(result_pickle=pickle.dumps({"a": 1})).get() == {"a": 1}
    assert completed(result=b'{"a": [1, null, "\xc3\xa4"]}').get() == {"a": [1, None, "ä"]}
    assert completed().get() is None


@pytest.mark.parametrize("digits", [1, 4300, 4301, 9001, 20000])
def test_json_integers_are_exact(digits: int) -> None:
    text = "-" + "7" * digits
    value = completed(result=text.encode()).get()
    assert -value * 9 + 7 == 7 * 10**digits


def test_values_that_cannot_be_read() -> None:
    with pytest.raises(treadle.UnpicklingError):
        completed(result_pickle=b"nonsense").get()
    with pytest.raises(treadle.UnpicklingError):
        completed(result=b"{").get()


def test_the_original_exception() -> None:
    exc = failed(exception_type="ValueError", exception_pickle=pickle.dumps(ValueError("bad", 3)))
    assert type(exc) is ValueError and exc.args == ("bad", 3)
    assert isinstance(exc.__cause__, treadle.RemoteTraceback)
    assert 'File "job.py", line 3, in job' in "".join(traceback.format_exception(type(exc), exc, None))


def test_the_faithful_copy_is_preferred() -> None:
    stand_in = pickle.dumps(RuntimeError("Own: 7"))
    exc = failed(exception_type="test_results.Own", exception_pickle=stand_in, foreign_pickle=pickle.dumps(Own(7)))
    assert type(exc) is Own and exc.code == 7


@pytest.mark.parametrize(
    "foreign", [b"", b"\x80\x04\x8c\x07missing\x8c\x03Own\x93.", pickle.dumps(Broken(1, 2)), pickle.dumps(Fatal())]
)
def test_an_exception_that_cannot_be_had(foreign: bytes) -> None:
    stand_in = pickle.dumps(RuntimeError("Own: 7"))
    exc = failed(exception_type="missing.Own", message="7", exception_pickle=stand_in, foreign_pickle=foreign)
    assert type(exc) is treadle.TaskFailed
    assert str(exc) == "missing.Own: 7"
    assert (exc.exception_type, exc.traceback, exc.task_id) == ("missing.Own", TRACE, "t1")
    assert "job.py" in str(exc.__cause__)


def test_a_runtime_error_is_no_stand_in() -> None:
    exc = failed(exception_type="RuntimeError", exception_pickle=pickle.dumps(RuntimeError("x")))
    assert type(exc) is RuntimeError


def test_safe_mode_loads_builtin_exceptions_only() -> None:
    exc = failed(_pickling.safe_loads, exception_type="ValueError", exception_pickle=pickle.dumps(ValueError("bad")))
    assert type(exc) is ValueError
    exc = failed(_pickling.safe_loads, exception_type="Own", message="7", foreign_pickle=pickle.dumps(Own(7)))
    assert type(exc) is treadle.TaskFailed


def test_modes() -> None:
    with pytest.raises(ValueError, match="'trust' or 'safe'"):
        _results.loader("trusted")


def missing(package: str, ways: str = "call cloudpickle.register_pickle_by_value(...)") -> str:
    message = (
        f"the function needs the Python package {package!r} (ModuleNotFoundError: No module named {package!r}). {ways}"
    )
    error = pb.TaskError(error_type="SerializationError", exception_type="ModuleNotFoundError", message=message)
    found = _results.outcome(pb.TaskResult(status=pb.Task.FAILED, error=error), _pickling.loads).error
    assert isinstance(found, treadle.SerializationError)
    assert found.message.endswith(message)
    return found.message


def test_a_missing_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_for_tests.py").write_text("")
    (tmp_path / "own_package_for_tests").mkdir()
    (tmp_path / "own_package_for_tests" / "__init__.py").write_text("")
    (tmp_path / "own_namespace_for_tests").mkdir()
    for name in ("own_for_tests", "own_package_for_tests", "own_namespace_for_tests"):
        monkeypatch.setitem(sys.modules, name, __import__(name))
        told = missing(name)
        assert told.startswith(
            f"{name!r} is a module of your own, in {tmp_path}, and the worker does not have it. Call "
        )
        assert f"cloudpickle.register_pickle_by_value({name}) before you submit" in told
        # It does not help source text, and the worker does not name it then.
        assert missing(name, "start the worker with --python-path DIR").startswith("the function needs")
    for name in ("pytest", "json", "sys", "not_there"):
        assert missing(name).startswith("the function needs")


def test_a_missing_module_of_a_result() -> None:
    with pytest.raises(
        treadle.UnpicklingError, match="module of your own, put its folder on .*; if it is a published package"
    ):
        _pickling.loads(b"cnot_there_at_all\nX\n.")
