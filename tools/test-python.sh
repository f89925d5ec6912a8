#!/usr/bin/env bash
# Checks the Python code: format and lint of all of it, types of the end-to-end tests,
# then the client: types, its tests (against bin/treadle), and that what `pip install`
# would install is whole.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/python/bin:$PWD/.tools/node/node_modules/.bin:$PWD/.tools/bin:$PATH"
export TREADLE_BIN="${TREADLE_BIN:-$PWD/bin/treadle}"
export PYTHONDONTWRITEBYTECODE=1

# A wheel holds what is in the client's own folder.
cmp LICENSE clients/python/LICENSE

ruff format --check .
ruff check .

# Tests skip what is not installed; here everything is.
command -v pyright >/dev/null || { echo "test-python: pyright is missing: tools/install.sh node" >&2; exit 1; }
python -c 'import joblib, numpy, sklearn'

# Tests see the client as it stands here, not as it may be installed.
(
  cd clients/python
  export PYTHONPATH="$PWD/src"
  mypy --strict src/treadle
  pytest --strict-markers --strict-config -ra tests
)

(cd e2e && mypy .)

dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$dir" ./clients/python
python -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir/site" "$dir"/*.whl
# Run elsewhere, so that the sources cannot help.
cd "$dir"
PYTHONPATH="$dir/site" python - "$dir/site" <<'PY'
import importlib.metadata
import pathlib
import sys

import treadle
from treadle._gen.treadle.v1 import fabric_pb2, fabric_pb2_grpc  # noqa: F401

site = pathlib.Path(sys.argv[1])
assert site in pathlib.Path(treadle.__file__).parents, treadle.__file__
assert treadle.__version__ == importlib.metadata.version("treadle")
assert (site / "treadle" / "py.typed").exists(), "the wheel does not say that it is typed"
told = importlib.metadata.metadata("treadle")
assert list(site.glob("treadle-*.dist-info/**/LICENSE")), "the wheel has no license"
assert "Programming Language :: Python :: 3.9" in told.get_all("Classifier", [])
needs = told.get_all("Requires-Dist", [])
assert any(need.startswith("cloudpickle") and ";" not in need for need in needs), needs
print("test-python: the wheel is whole:", treadle.__version__)
PY
