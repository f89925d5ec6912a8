"""Writes corpus.zip beside this file: what dill, cloudpickle and pickle produce.

Run it with a Python that has dill and cloudpickle:
    python3 make.py
The archive is committed, so tests need neither.
"""

import datetime
import decimal
import functools
import pathlib
import pickle
import zipfile

import cloudpickle
import dill

HERE = pathlib.Path(__file__).parent

offset = 40


def double(x):
    return x * 2


def closure():
    seen = []

    def count(x):
        seen.append(x)
        return len(seen) + offset

    return count


def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)


class Shape:
    kind = "shape"

    def __init__(self, sides):
        self.sides = sides

    def area(self):
        raise NotImplementedError


def error_with_attributes():
    e = ValueError("boom", 3)
    e.status = "FAILED"
    e.error_type = "FunctionExecutionFailure"
    return e


nested = []
for _ in range(200):
    nested = [nested, (1, 2, 3, 4, nested)]
loop = []
loop.append(loop)

VALUES = {
    "function": double,
    "lambda": lambda x, y=2: x + y,
    "closure": closure(),
    "recursive": recursive,
    "partial": functools.partial(double, x=3),
    "class": Shape,
    "instance": Shape(4),
    "args": ((21,), {"key": [1, 2.5, None, True, b"bytes", "\u00fc\u20ac\U0001f600"]}),
    "empty": ((), {}),
    "many": (tuple(range(2000)), {}),
    "bigbytes": bytes(70_000),
    "bytearray": bytearray(b"x" * 300),
    "longtext": "x" * 70_000,
    "bigint": [2**64, -(2**200), 3**5000],
    "sets": [{1, 2, 3}, frozenset("abc"), set(), frozenset()],
    "loop": loop,
    "nested": nested,
    "exception": error_with_attributes(),
    "datetime": [datetime.datetime(2026, 1, 2, 3, 4, 5), decimal.Decimal("1.25")],
    "complex": [1j, slice(1, 2), range(3), ...],
}

with zipfile.ZipFile(HERE / "corpus.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as corpus:
    for name, value in VALUES.items():
        for module in (pickle, dill, cloudpickle):
            for protocol in range(2, 6):
                try:
                    data = module.dumps(value, protocol=protocol)
                except Exception:  # plain pickle cannot hold a lambda, say
                    continue
                entry = zipfile.ZipInfo(f"{name}.{module.__name__}.{protocol}")
                entry.compress_type = zipfile.ZIP_DEFLATED
                corpus.writestr(entry, data)
