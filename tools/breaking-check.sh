#!/usr/bin/env bash
# Checks the contract against the last released one (proto/released.binpb), and then
# checks the check: a copy of the contract that lost a field must be refused.
set -euo pipefail
cd "$(dirname "$0")/.."
buf="$PWD/.tools/node/node_modules/.bin/buf"
PATH="$PWD/.tools/bin:$PATH"

"$buf" breaking --against proto/released.binpb

copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -R buf.yaml proto "$copy"
field='^  string function_id = 1;$'
grep -q "$field" "$copy/proto/treadle/v1/fabric.proto" || {
  echo "breaking-check: the field to delete is gone; name another one here" >&2
  exit 1
}
grep -v "$field" proto/treadle/v1/fabric.proto >"$copy/proto/treadle/v1/fabric.proto"
if said="$(cd "$copy" && "$buf" breaking --against proto/released.binpb 2>&1)"; then
  echo "breaking-check: buf accepted a contract that lost a field" >&2
  exit 1
fi
if [[ $said != *'field "1" with name "function_id"'*deleted* ]]; then
  echo "breaking-check: buf failed for another reason than the deleted field:" >&2
  echo "$said" >&2
  exit 1
fi
echo "breaking-check: ok"
