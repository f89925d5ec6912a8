"""Calls double by a client that openapi-generator made."""

import json
import sys

from treadle_api import ApiClient, ApiException, CallInput, Configuration, FunctionsApi

api = FunctionsApi(ApiClient(Configuration(host=sys.argv[1])))
answer = api.call("double", call_input=CallInput(args=[21]))
print(answer.status.value, answer.result)
try:
    api.call("nobody", call_input=CallInput(args=[21]))
except ApiException as error:
    print(json.loads(error.body)["error"]["reason"])
