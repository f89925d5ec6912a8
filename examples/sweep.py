"""Maps a function over a grid of parameters and shows the progress.

To run it, start a fabric as the comment in first.py says, and then:

    .venv/bin/python examples/sweep.py
"""

import itertools
import sys
from concurrent.futures import as_completed

import treadle

RATES = [0.5, 1.0, 1.5, 2.0, 2.5]
STARTS = [0.2, 0.4, 0.6, 0.8]


def score(rate: float, start: float) -> float:
    """Stands for the model that you would train: the hundredth step of the logistic map."""
    x = start
    for _ in range(100):
        x = rate * x * (1 - x)
    return x


def main() -> None:
    grid = list(itertools.product(RATES, STARTS))
    with treadle.Client() as client:
        points = {client.submit(score, rate, start): (rate, start) for rate, start in grid}
        scores = {}
        for done, future in enumerate(as_completed(points), start=1):
            scores[points[future]] = future.result()
            print(f"{done} of {len(grid)}", file=sys.stderr)
    rate, start = max(scores, key=lambda point: round(scores[point], 6))
    print(f"{len(scores)} points, best rate {rate}: {scores[rate, start]:.6f}")


if __name__ == "__main__":
    main()
