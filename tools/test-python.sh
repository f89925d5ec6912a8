#!/usr/bin/env bash
# Checks the Python code: the client's format, lint, types and tests (against
# bin/treadle), and the lint of the runner that the Go binary carries.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/python/bin:$PATH"
export TREADLE_BIN="${TREADLE_BIN:-$PWD/bin/treadle}"
# Tests see the client as it stands here, not as it may be installed.
export PYTHONPATH="$PWD/clients/python/src" PYTHONDONTWRITEBYTECODE=1

ruff format --check .
ruff check .

cd clients/python
mypy --strict src/treadle
pytest --strict-markers --strict-config -ra tests
