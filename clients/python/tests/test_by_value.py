"""What goes by value: as it is when it is submitted, and readable where it arrives."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import treadle
from fake_fabric import FakeFabric
from treadle import _pickling, _value
from treadle.testing import LocalClient

cloudpickle = pytest.importorskip("cloudpickle")

SOURCE = str(Path(treadle.__file__).parent.parent)
OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


# Never an old function.


def script(text: str) -> dict[str, Any]:
    """The names of a program that runs as __main__ does: nobody can import it."""
    names: dict[str, Any] = {"__name__": "__main__", "treadle": treadle}
    exec(textwrap.dedent(text), names)
    return names


Stale = Callable[[treadle.Client], tuple[list[Any], list[Any]]]


def changed_global(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    names = script("def train(x): return rate * x")
    found = []
    for names["rate"] in (1, 10, 100):
        found.append(list(client.map(names["train"], [1, 2])))
    return found, [[1, 2], [10, 20], [100, 200]]


def changed_helper(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    names = script("def helper(x): return x\ndef outer(x): return helper(x) + 1")
    found = [client.submit(names["outer"], 1).result(10)]
    exec("def helper(x): return 100 * x", names)
    found.append(client.submit(names["outer"], 1).result(10))
    return found, [2, 101]


def loop_variable(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    def inner() -> int:
        return n

    found = []
    for n in range(3):  # noqa: B007
        found.append(client.submit(inner).result(10))
    return found, [0, 1, 2]


def captured_dict(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    box = {"n": 0}
    found = []
    for n in range(3):
        box["n"] = n
        found.append(client.submit(lambda: box["n"]).result(10))
    held = lambda: box["n"]  # noqa: E731
    for n in range(3):
        box["n"] = n
        found.append(client.submit(held).result(10))
    return found, [0, 1, 2, 0, 1, 2]


def defaults(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    def f(n: int = 0, *, k: int = 0) -> tuple[int, int]:
        return n, k

    found = [client.submit(f).result(10)]
    f.__defaults__ = (1,)
    found.append(client.submit(f).result(10))
    f.__kwdefaults__ = {"k": 2}
    found.append(client.submit(f).result(10))
    return found, [(0, 0), (1, 0), (1, 2)]


def held_method(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    numbers = [7]
    count = numbers.count
    found = [client.submit(count, 7).result(10)]
    numbers.append(7)
    found.append(client.submit(count, 7).result(10))
    return found, [1, 2]


def partial(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    box = [1]
    add = functools.partial(operator.add, box)
    found = [client.submit(add, [0]).result(10)]
    box[0] = 2
    found.append(client.submit(add, [0]).result(10))
    return found, [[1, 0], [2, 0]]


def changed_code(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    def f() -> int:
        return 1

    def g() -> int:
        return 2

    found = [client.submit(f).result(10)]
    f.__code__ = g.__code__
    found.append(client.submit(f).result(10))
    return found, [1, 2]


def chunks(client: treadle.Client) -> tuple[list[Any], list[Any]]:
    names = script("def train(x): return rate * x")
    found = []
    for names["rate"] in (1, 10):
        found.append(list(client.map(names["train"], [1, 2, 3], chunksize=2)))
    return found, [[1, 2, 3], [10, 20, 30]]


STALE = [
    changed_global,
    changed_helper,
    loop_variable,
    captured_dict,
    defaults,
    held_method,
    partial,
    changed_code,
    chunks,
]


@pytest.mark.parametrize("kind", STALE, ids=lambda kind: kind.__name__)
def test_what_changed_is_sent_anew(client: treadle.Client, kind: Stale) -> None:
    found, wanted = kind(client)
    assert found == wanted


def test_what_did_not_change_is_registered_once(fabric: FakeFabric, client: treadle.Client) -> None:
    names = script(
        "import math\nrate = 3\ndef helper(x): return {'a', 'b', x}\ndef f(x): return rate, helper(math.floor(x))"
    )
    closed = {"x", "y"}
    held = lambda: closed  # noqa: E731
    for _ in range(20):
        client.submit(names["f"], 1).result(10)
        client.submit(held).result(10)
        client.submit(operator.neg, 1).result(10)
    assert len(fabric.functions) == 3


def test_a_reference_is_not_pickled_again(client: treadle.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.submit(operator.neg, 1).result(10)
    monkeypatch.setattr(_pickling, "dump_function", None)
    assert client.submit(operator.neg, 2).result(10) == -2


def test_what_goes_by_reference() -> None:
    for named in (operator.neg, textwrap.dedent, len, FakeFabric.start):
        assert _value.goes_by_reference(named)
    wrapped = functools.wraps(textwrap.dedent)(lambda text: text)
    for copied in ([].append, lambda: 1, wrapped, functools.partial(len), script("def f(): pass")["f"], int, "x".join):
        assert not _value.goes_by_reference(copied)


# The Python that it is for.


def other(data: bytes) -> bytes:
    """The same pickle, as another Python would have marked it."""
    mark = f"treadle/python={OURS}".encode()
    assert data[:2] == b"\x80\x04" and data[2:4] == b"\x8c" + bytes([len(mark)]) and data[4:].startswith(mark + b"0")
    return data.replace(mark, b"treadle/python=2.71"[: len(mark)], 1)


def test_pickles_with_code_say_their_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, without in (("cloudpickle", "dill"), ("dill", "cloudpickle")):
        pytest.importorskip(package)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, without, None)
            data = _pickling.dump_args((lambda x: x + 1,), {})
        assert other(data) != data
        (fn,), _ = pickle.loads(data)
        assert fn(1) == 2, "an unpickler that does not know the mark"
        assert pickle.loads(_python_reader(data))[0] == "read"
    nested = _pickling.dump_value([cloudpickle.dumps(lambda: 1)])
    assert other(nested) != nested, "a pickle inside of a pickle"


def _python_reader(data: bytes) -> bytes:
    """The unpickler that is written in Python, and pickletools, take it as well."""
    import io
    import pickletools

    pickle._Unpickler(io.BytesIO(data)).load()  # type: ignore[attr-defined]
    list(pickletools.genops(data))
    return pickle.dumps(("read",))


def test_plain_data_is_for_every_python() -> None:
    for value in (1, ["treadle/python=1.0"], operator.neg, {"a": b"x" * 1000}, ValueError("x")):
        assert b"treadle/python=" not in _pickling.dump_value(value).replace(b"treadle/python=1.0", b"")
        assert _pickling.loads(_pickling.dump_value(value)).__class__ is value.__class__


def test_results_of_another_python_are_refused_in_words() -> None:
    data = other(_pickling.dump_value(lambda: 1))
    with pytest.raises(treadle.UnpicklingError, match=rf"under Python 2\.7.*this Python {OURS} cannot.*--python"):
        _pickling.loads(data)


def test_exceptions_of_another_python_are_told(fabric: FakeFabric, client: treadle.Client) -> None:
    from treadle._gen.treadle.v1 import fabric_pb2 as pb

    class Own(Exception):
        def say(self) -> str:
            return "own"

    fabric.auto = False
    future = client.submit(operator.neg, 1)
    neighbour = client.submit(operator.neg, 2)
    error = pb.TaskError(
        error_type="FunctionExecutionFailure",
        exception_type="Own",
        message="4",
        traceback="Traceback: there",
        foreign_pickle=other(_pickling.dump_value(Own(4))),
        task_id=future.task_id,
    )
    fabric.end(future.task_id, status=pb.Task.FAILED, error=error)
    fabric.finish(neighbour.task_id, -2)
    with pytest.raises(treadle.TaskFailed, match="Own: 4") as info:
        future.result(10)
    assert type(info.value) is treadle.TaskFailed and "there" in str(info.value.__cause__)
    assert neighbour.result(10) == -2


# How it is written.


@pytest.fixture
def mylib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A package of the user's own that no worker has."""
    (tmp_path / "mylib_for_tests").mkdir()
    (tmp_path / "mylib_for_tests" / "__init__.py").write_text("")
    (tmp_path / "mylib_for_tests" / "part.py").write_text(
        textwrap.dedent("""
        import enum, functools
        class Thing:
            def __init__(self, v): self.v = v
            def twice(self): return 2 * self.v
        class Color(enum.Enum):
            RED = 1
        def work(x): return Thing(x).twice()
        @functools.lru_cache(maxsize=7)
        def cached(x): return work(x)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import mylib_for_tests  # type: ignore[import-not-found]
    import mylib_for_tests.part as part  # type: ignore[import-not-found]

    cloudpickle.register_pickle_by_value(mylib_for_tests)
    yield part
    cloudpickle.unregister_pickle_by_value(mylib_for_tests)
    for name in ("mylib_for_tests", "mylib_for_tests.part"):
        del sys.modules[name]


def elsewhere(data: bytes, expression: str, **extra: str) -> str:
    """Evaluate an expression of x, the loaded pickle, in a process that knows nothing of this one."""
    program = "import pickle, sys; x = pickle.loads(sys.stdin.buffer.read()); print((" + expression + "))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


CLASSES = """
import abc, enum, functools, typing

T = typing.TypeVar("T")

class Shape(abc.ABC):
    sides = 4
    @classmethod
    def count(cls): return cls.sides
    @staticmethod
    def name(): return "shape"
    @property
    def half(self): return self.sides / 2
    @functools.cached_property
    def double(self): return 2 * self.sides
    @abc.abstractmethod
    def area(self): ...
    scaled = functools.partialmethod(lambda self, by: by * self.sides, 3)

class Square(Shape, typing.Generic[T]):
    def area(self): return self.sides ** 2
    @classmethod
    def make(cls) -> "Square[T]": return cls()

class Point(typing.NamedTuple):
    x: int = 1
    @property
    def y(self): return 2 * self.x

class Slots:
    __slots__ = ("a",)

class Color(enum.Enum):
    RED = 1
    @classmethod
    def first(cls): return cls.RED

class Mode(enum.Flag):
    R = enum.auto()
    W = enum.auto()

def work(x: T) -> typing.List[T]:
    square = Square.make()
    return [Shape.count(), Shape.name(), square.half, square.double, square.area(), square.scaled(),
            Point(3).y, hasattr(Slots(), "__dict__"), Color.first().name, (Mode.R | Mode.W).value, x]

"""

# Annotations name these; each works as it does in a script's own functions.
FORMS = {
    "NewType": "UserId = typing.NewType('UserId', int)\ndef form(x: UserId) -> int: return UserId(x)",
    "ParamSpec": "P = typing.ParamSpec('P')\ndef form(x: int, *a: P): return x",
    "TypeVarTuple": "Ts = typing.TypeVarTuple('Ts')\ndef form(x: int, *a: Ts): return x",
    "TypeAliasType": "type Pair = tuple[int, Pair | None]\ndef form(x: Pair): return x\ndef g[V](x: V) -> V: return x",
}


def test_classes_of_the_script_with_all_that_they_may_hold() -> None:
    names = script(CLASSES)
    wanted = "[4, 'shape', 2.0, 8, 16, 12, 6, False, 'RED', 3, 5]"
    assert elsewhere(_pickling.dump_function(names["work"]), "x(5)") == wanted
    for method in (names["Shape"].count, names["Shape"].name, names["Square"].count, names["Square"]().area):
        data = _pickling.dump_args((method,), {})
        assert elsewhere(data, "x[0][0]()") == str(method())
        assert elsewhere(_pickling.dump_function(method), "x()") == str(method())


@pytest.mark.parametrize("name", [name for name in FORMS if hasattr(typing, name)])
def test_forms_that_annotations_name(name: str) -> None:
    names = script("import typing\n" + FORMS[name])
    assert elsewhere(_pickling.dump_function(names["form"]), "x(21)") == "21"


def test_modules_by_value(mylib: Any) -> None:
    assert elsewhere(_pickling.dump_args(([mylib.Thing(3)],), {}), "x[0][0][0].twice()") == "6"
    assert elsewhere(_pickling.dump_args((mylib.Color.RED,), {}), "x[0][0].name") == "RED"
    assert elsewhere(_pickling.dump_args((mylib.work, [(1,)]), {}), "x[0][0](21)") == "42", "a chunk's"
    assert elsewhere(_pickling.dump_function(mylib.work), "x(21)") == "42"
    assert elsewhere(_pickling.dump_function(mylib.cached), "x(21), x.cache_parameters()['maxsize']") == "(42, 7)"
    assert not _value.goes_by_reference(mylib.work)


def test_modules_by_value_from_one_submit_to_the_next(fabric: FakeFabric, client: treadle.Client, mylib: Any) -> None:
    fabric.auto = False
    cloudpickle.unregister_pickle_by_value(sys.modules["mylib_for_tests"])
    try:
        client.submit(mylib.work, 1).task_id  # noqa: B018
    finally:
        cloudpickle.register_pickle_by_value(sys.modules["mylib_for_tests"])
    client.submit(mylib.work, 1).task_id  # noqa: B018
    sizes = [len(f.payload) for f in fabric.functions.values()]
    assert len(sizes) == 2 and sizes[0] < 100 < sizes[1]


CACHED = """
import functools
calls = []
@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.lru_cache(maxsize=3, typed=True)
def plus(n): return n + 1
def uses(n): return plus(n) + fib(n)
"""


def test_caches_of_the_script_travel_empty() -> None:
    names = script(CACHED)
    names["fib"](20)
    told = elsewhere(
        _pickling.dump_function(names["fib"]), "x.cache_info().currsize, x(50), x.__name__, x.__wrapped__ is not x"
    )
    assert told == "(0, 12586269025, 'fib', True)"
    assert elsewhere(_pickling.dump_function(names["uses"]), "x(10)") == "66"
    partial = functools.partial(names["plus"], 1)
    assert elsewhere(_pickling.dump_args((partial,), {}), "x[0][0](), x[0][0].func.cache_parameters()") == (
        "(2, {'maxsize': 3, 'typed': True})"
    )


def test_caches_of_modules_are_named() -> None:
    import fnmatch

    cached = functools.lru_cache(maxsize=1)(textwrap.dedent)
    assert b"_lru_cache_wrapper" in _pickling.dump_function(cached), "what nobody can import"
    compiled = fnmatch._compile_pattern  # type: ignore[attr-defined]
    assert b"_lru_cache_wrapper" not in _pickling.dump_function(compiled)


def test_names_in_main_are_refused() -> None:
    names = script("""
        class Missing:
            def __reduce__(self): return "MISSING"
        MISSING = Missing()
        def f(x=MISSING): return x
    """)
    for dump in (
        lambda: _pickling.dump_args((names["MISSING"],), {}),
        lambda: _pickling.dump_function(names["f"]),
    ):
        with pytest.raises(treadle.PicklingError, match="'MISSING' in __main__, which workers cannot import"):
            dump()


CHILD = """
import multiprocessing, subprocess, sys

class Point:
    def __init__(self, x): self.x = x

def helper(p): return p.x + 1

def work(p): return helper(p)

def child(queue):
    from treadle import _pickling
    queue.put((_pickling.dump_function(work), _pickling.dump_args((Point(1),), {{}})))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    function, args = queue.get(timeout=60)
    process.join()
    worker = "import pickle, sys; f, (a, k) = [pickle.loads(bytes.fromhex(x)) for x in sys.argv[1:]]; print(f(*a, **k))"
    print(subprocess.run([sys.executable, "-c", worker, function.hex(), args.hex()], capture_output=True, text=True))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_send_the_script_by_value(tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHILD.format(method=method))
    env = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=120)
    assert "stdout='2\\n'" in done.stdout, done.stdout + done.stderr


# Registered functions.


def test_registered_functions_call_themselves_and_each_other() -> None:
    client = LocalClient()

    @client.register
    def fact(n: int) -> int:
        return 1 if n < 2 else n * fact(n - 1)

    @client.register(name="sum of factorials", queue="gpu")
    def total(n: int) -> int:
        return sum(fact(k) for k in range(n))

    @client.register
    @functools.lru_cache(maxsize=8)
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(10) == 55
    assert fact(5) == 120 and total(5) == 34
    assert (total.name, total.queue) == ("sum of factorials", "gpu")
    assert client.submit(lambda f: f(4), fact).result() == 24
    assert len(list(client.tasks())) == 4, "on the worker they are plain functions"


def test_registered_functions_of_a_script() -> None:
    client = LocalClient()
    names = script("")
    names["client"] = client
    for factor in (1, 2):  # a cell that is run again
        exec(
            textwrap.dedent(f"""
            @client.register
            def fact(n):
                return {factor} if n < 2 else n * fact(n - 1)
            import functools
            @client.register
            @functools.cache
            def cached(n):
                return {factor} if n < 2 else n * cached(n - 1)
            assert cached(3) == 6 * {factor}
            @client.register
            def other(n):
                return [fact(k) for k in range(n)]
            """),
            names,
        )
        assert names["fact"](4) == 24 * factor
        assert names["other"](3) == [factor, factor, 2 * factor]
    assert isinstance(names["fact"].callable, types.FunctionType)
    assert names["fact"].callable.__globals__ is names, "the function itself is as it was"
