#!/usr/bin/env bash
# Runs every Go fuzz target of the repository for a short while.
#
#   tools/fuzz.sh [TIME]     TIME of each target, as `go test -fuzztime` reads it
#
# A found input is written to the package's testdata/fuzz: commit it with the repair.
set -euo pipefail
cd "$(dirname "$0")/.."
time="${1:-5000x}"

count=0
while IFS=: read -r file name; do
  echo "fuzz: $name (${file%/*})"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "./${file%/*}"
  count=$((count + 1))
done < <(grep -roE --include='*_test.go' --exclude-dir=.tools --exclude-dir=node_modules \
  '^func Fuzz[A-Za-z0-9_]*' . | sed 's/:func /:/' | sort)
if ((count == 0)); then
  echo "fuzz: no fuzz target found" >&2
  exit 1
fi
echo "fuzz: $count targets, no failure"
