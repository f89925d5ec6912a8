#!/usr/bin/env bash
# Tests what belongs to one folder, for the time between two edits: its Go packages without
# the race detector, or the tests of its client. No end-to-end test: `make test` has those.
#
#   tools/test-quick.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."

misuse() {
  echo "test-quick: $*" >&2
  exit 2
}

dir="${1:-}"
[[ -n "$dir" ]] || misuse "DIR is missing; for example: make test-quick DIR=server"
dir="${dir#./}"
dir="${dir%/}"
[[ -d "$dir" ]] || misuse "there is no folder $dir in $PWD"
[[ -n "$(git ls-files --cached --others --exclude-standard -- "$dir" | head -n 1)" ]] || misuse "$dir holds no file of the project"

# Both tools and interpreter of .tools come first, as in `make test-go`.
export PATH="$PWD/.tools/bin:$PWD/.tools/python/bin:$PATH"
ran=

# has PATTERN: does the folder hold such files?
has() { [[ -n "$(git ls-files --cached --others --exclude-standard -- "$dir/$1" "$dir/**/$1" | head -n 1)" ]]; }

case "$dir" in
  clients/python | clients/python/*)
    tools/install.sh python
    go build -o bin/treadle ./cmd/treadle
    export TREADLE_BIN="$PWD/bin/treadle" PYTHONDONTWRITEBYTECODE=1
    (cd clients/python && PYTHONPATH="$PWD/src" mypy --strict src/treadle && PYTHONPATH="$PWD/src" pytest --strict-markers --strict-config -q tests)
    ran=1
    ;;
  clients/typescript | clients/typescript/*)
    tools/install.sh python typescript
    go build -o bin/treadle ./cmd/treadle
    (cd clients/typescript && TREADLE_BIN="$OLDPWD/bin/treadle" npm test)
    ran=1
    ;;
  proto | proto/*)
    make lint-proto
    ran=1
    ;;
  docs | docs/*)
    go test ./internal/buildcheck
    ran=1
    ;;
  deploy | deploy/*)
    make test-deploy
    ran=1
    ;;
  e2e | e2e/*)
    misuse "$dir holds end-to-end tests: run make test-e2e, or one of them as CONTRIBUTING.md says"
    ;;
esac

# The module is that of the folder: chaos and tools have their own.
if [[ -z "$ran" ]] && has '*.go'; then
  needs=()
  deps="$(cd "$dir" && go list -test -deps ./...)"
  grep -q '/redistest' <<<"$deps" && needs+=(redis)
  grep -q '/worker/pyproc' <<<"$deps" && needs+=(python)
  ((${#needs[@]})) && tools/install.sh "${needs[@]}"
  (cd "$dir" && go vet ./... && go test -timeout 10m ./...)
  ran=1
fi
if has '*.py'; then
  [[ -x .tools/python/bin/ruff ]] || tools/install.sh python
  ruff format --check "$dir"
  ruff check "$dir"
  ran=1
fi
[[ -n "$ran" ]] || misuse "$dir has no tests of its own"
echo "test-quick: $dir: ok"
