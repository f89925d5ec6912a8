"""What travels, how, and what is refused."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import io
import operator
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle import _pickling

SOURCE = str(Path(treadle.__file__).parent.parent)

# A client program and, as its own child, a worker that knows nothing of it.
PROGRAM = """
import pickle, subprocess, sys
for missing in {missing!r}:
    sys.modules[missing] = None
from treadle import _pickling

factor = 21

class Point:
    def __init__(self, x):
        self.x = x

def fact(n):
    return 1 if n < 2 else n * fact(n - 1)

def scale(point):
    return point.x * factor + fact(3)

function = _pickling.dump_function(scale)
args = _pickling.dump_args((Point(2),), {{}})
worker = "import pickle, sys; f, (a, k) = [pickle.loads(bytes.fromhex(x)) for x in sys.argv[1:]]; print(f(*a, **k))"
print(subprocess.run([sys.executable, "-c", worker, function.hex(), args.hex()], capture_output=True, text=True))
"""


def run(missing: list[str], program: str = PROGRAM) -> str:
    env = {**os.environ, "PYTHONPATH": SOURCE}
    text = textwrap.dedent(program).format(missing=missing)
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_main_travels_by_value_with_cloudpickle() -> None:
    pytest.importorskip("cloudpickle")
    assert "stdout='48\\n'" in run(missing=["dill"])


def test_main_travels_by_value_with_dill() -> None:
    pytest.importorskip("dill")
    assert "stdout='48\\n'" in run(missing=["cloudpickle"])


def test_main_is_refused_where_nothing_can_send_it() -> None:
    out = run(missing=["cloudpickle", "dill"])
    assert "treadle.errors.PicklingError" in out
    assert "'scale' is defined in __main__" in out and "treadle[cloudpickle]" in out


def test_arguments_of_main_are_refused_too() -> None:
    program = """
    import sys
    for missing in {missing!r}:
        sys.modules[missing] = None
    from treadle import _pickling
    class Point: pass
    _pickling.dump_args(("the word __main__ alone",), {{}})
    print("text passes")
    _pickling.dump_args((Point(),), {{}})
    """
    out = run(missing=["cloudpickle", "dill"], program=program)
    assert "text passes" in out and "'Point' is defined in __main__" in out


def test_functions_of_modules_travel_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("cloudpickle", "dill"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert pickle.loads(_pickling.dump_function(operator.neg)) is operator.neg
    assert pickle.loads(_pickling.dump_function(functools.partial(operator.add, 1)))(2) == 3
    with pytest.raises(treadle.PicklingError, match="lambda"):
        _pickling.dump_function(lambda: 1)


def test_what_cannot_travel() -> None:
    with pytest.raises(treadle.PicklingError, match="not callable"):
        _pickling.dump_function(42)  # type: ignore[arg-type]
    with pytest.raises(treadle.PicklingError, match="lock"):
        _pickling.dump_args((threading.Lock(),), {})
    with pytest.raises(pickle.PicklingError):
        _pickling.dump_args((), {"x": (n for n in "")})


def test_arguments_that_need_code() -> None:
    data = _pickling.dump_args((lambda x: 2 * x,), {})
    (fn,), kwargs = pickle.loads(data)
    assert fn(21) == 42 and kwargs == {}


def test_bytecode_is_bound_to_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for package, other in (("cloudpickle", "dill"), ("dill", "cloudpickle")):
        pytest.importorskip(package)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, other, None)
            assert _pickling.python_of(_pickling.dump_function(lambda: 1)) == ours
            assert _pickling.python_of(_pickling.dump_function(functools.partial(lambda x: x, "text"))) == ours
            assert _pickling.python_of(_pickling.dump_function(operator.neg)) == ""


def test_protocol() -> None:
    assert _pickling.dump_args((1,), {})[:2] == b"\x80\x04"
    assert _pickling.dump_function(operator.neg)[:2] == b"\x80\x04"


def test_a_missing_package_is_named() -> None:
    data = b"\x80\x04\x8c\x0fno_such_package\x8c\x01f\x93."
    with pytest.raises(treadle.UnpicklingError, match="pip install no_such_package"):
        _pickling.loads(data)
    for broken in (b"", b"\x80\x04", b"hello", pickle.dumps([1])[:-1]):
        with pytest.raises(treadle.UnpicklingError):
            _pickling.loads(broken)


class Exits:
    def __reduce__(self) -> Any:
        return sys.exit, ("while loading",)


def test_loading_cannot_end_the_program() -> None:
    with pytest.raises(treadle.UnpicklingError, match="SystemExit: while loading"):
        _pickling.loads(pickle.dumps(Exits()))


# How pickle wrote sets and exceptions before (protocol 2) is not read: runners write 4.
SAFE_VALUES: list[Any] = [
    None,
    [1, 2.5, "ä", b"\x00", {"k": (True, None)}],
    {1, 2},
    frozenset("ab"),
    bytearray(b"xy"),
    1 + 2j,
    range(3),
    slice(1, 2),
    datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc),
    datetime.timedelta(days=1),
    decimal.Decimal("1.25"),
    collections.OrderedDict(a=1),
    collections.deque([1], maxlen=3),
    10**5000,
]


@pytest.mark.parametrize("value", SAFE_VALUES, ids=lambda v: type(v).__name__)
def test_safe_reads_builtin_values(value: Any) -> None:
    for protocol in (3, 4, 5):
        assert _pickling.safe_loads(pickle.dumps(value, protocol)) == value


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


class Getter:
    def __reduce__(self) -> Any:
        return getattr, (dict, "fromkeys")


@pytest.mark.parametrize(
    "value", [Evil(), Getter(), operator.neg, os.system, eval, functools.partial(print), Path(".")]
)
def test_safe_refuses_everything_else(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(treadle.UnpicklingError, match="safe"):
        _pickling.safe_loads(pickle.dumps([value], 4))
    assert list(tmp_path.iterdir()) == []


def test_safe_classes_cannot_be_changed() -> None:
    for cls in _pickling._SAFE.values():
        with pytest.raises(TypeError):
            cls.treadle_probe = 1
    assert {set, datetime.datetime, decimal.Decimal, ValueError} <= set(_pickling._SAFE.values())


def test_safe_refuses_to_change_a_class() -> None:
    # The opcode BUILD with a pair of states sets attributes of whatever is on the stack.
    out = io.BytesIO()
    out.write(b"\x80\x04cdatetime\ndate\n")
    out.write(b"N}\x8c\x05today\x8c\x01xs\x86b.")
    with pytest.raises(treadle.UnpicklingError):
        _pickling.safe_loads(out.getvalue())
    assert callable(datetime.date.today)


def test_safe_exceptions() -> None:
    loaded = _pickling.safe_loads(pickle.dumps(KeyError("k")))
    assert isinstance(loaded, KeyError) and loaded.args == ("k",)
    with pytest.raises(treadle.UnpicklingError):
        _pickling.safe_loads(pickle.dumps(SystemExit(1)))


def test_own_exceptions_travel() -> None:
    exc = treadle.WorkerFailureError("gone", error_type="WorkerFailureError", task_id="t", worker_id="w")
    back = pickle.loads(pickle.dumps(exc))
    assert type(back) is treadle.WorkerFailureError
    assert (str(back), back.task_id, back.worker_id) == ("gone", "t", "w")


# Imports cloudpickle on a thread, which stops half way until the other one has asked for it.
HALF_IMPORTED = """
import importlib.abc, sys, threading
from treadle import _value

half, go = threading.Event(), threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "cloudpickle.cloudpickle":
            half.set()
            assert go.wait(20)
        return None

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=__import__, args=("cloudpickle",))
thread.start()
assert half.wait(20) and "cloudpickle" in sys.modules
threading.Timer(0.1, go.set).start()
print(_value.modules_by_value())
thread.join()
"""


def test_a_module_that_another_thread_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HALF_IMPORTED],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
