"""Registers a function, submits a call and prints its result.

To run it, start a fabric in one terminal:

    python3 -m venv .venv
    .venv/bin/pip install ./clients/python
    make run ARGS="--python .venv/bin/python"

and the program in another one:

    .venv/bin/python examples/first.py
"""

import treadle


def double(x: int) -> int:
    return 2 * x


def main() -> None:
    # The address is TREADLE_ADDRESS, else 127.0.0.1:50051.
    with treadle.Client() as client:
        function = client.register(double)
        future = function.submit(21)  # returns at once
        print("task", future.task_id)
        print("result", future.result())


if __name__ == "__main__":
    main()
