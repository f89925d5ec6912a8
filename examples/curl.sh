#!/usr/bin/env bash
# Registers a Python function, submits a call and waits for its result, with curl alone.
#
# To run it, start a fabric in one terminal and the script in another one:
#
#     make run
#     examples/curl.sh
set -euo pipefail

url=${TREADLE_URL:-http://127.0.0.1:8000}

# Each answer is one JSON object. field NAME prints the text that its field NAME holds.
field() { grep -o "\"$1\": *\"[^\"]*\"" | head -1 | cut -d'"' -f4; }

post() { curl --silent --show-error --fail-with-body -H 'Content-Type: application/json' "$url$1" -d "$2"; }

function_id=$(post /v1/functions '{"name": "double", "source": "def double(x): return 2 * x"}' | field function_id)
echo "function $function_id"

# Submit, and ask for the result later. The answer comes once the task is on disk.
task_id=$(post /v1/tasks "{\"function\": \"$function_id\", \"args\": [21]}" | field task_id)
echo "task $task_id"
curl --silent --show-error --fail-with-body "$url/v1/tasks/$task_id/result?wait=30s"
echo

# Submit and wait in one request.
post "/v1/functions/$function_id:call" '{"args": [4]}'
echo
