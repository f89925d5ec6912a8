"""From results to values and exceptions."""

from __future__ import annotations

import pickle
import traceback
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
