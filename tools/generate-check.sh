#!/usr/bin/env bash
# Fails when committed generated code is not what the generators write today: a file
# that differs, is missing, is left over, or was never added to git.
set -euo pipefail
cd "$(dirname "$0")/.."

dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
tools/generate.sh "$dir"

trees=(gen clients/typescript/src/gen clients/python/src/treadle/_gen)
bad=0
for tree in "${trees[@]}"; do
  # openapi.go is written by hand.
  diff -ru --exclude=openapi.go --exclude=__pycache__ "$tree" "$dir/$tree" || bad=1
done
untracked="$(git ls-files --others --exclude-standard -- "${trees[@]}")"
if [[ -n $untracked ]]; then
  echo "not added to git:"
  echo "$untracked"
  bad=1
fi
if ((bad)); then
  echo "generate-check: generated code differs (- committed, + generated): run 'make generate' and commit" >&2
  exit 1
fi
echo "generate-check: ok"
