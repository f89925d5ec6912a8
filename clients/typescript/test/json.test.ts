import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { encodeJson, NoJsonValueError, resultOf, Task_Status, TaskFailedError, TaskResultSchema } from "../src/index.js";

test("values survive the way there and back", () => {
  for (const value of [null, 0, -1.5, "", "naïve 🧵", [], {}, { a: [1, { b: null }] }]) {
    const result = create(TaskResultSchema, { status: Task_Status.COMPLETED, result: encodeJson(value) });
    assert.deepEqual(resultOf(result), value);
  }
});

test("what has no JSON form is refused", () => {
  assert.throws(() => encodeJson(undefined), TypeError);
  assert.throws(() => encodeJson(() => 1), TypeError);
  assert.throws(() => encodeJson(1n), TypeError);
});

test("a result without a JSON value is an error that says why", () => {
  const taskId = "t";
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.RUNNING })), {
    name: "NoJsonValueError",
    message: "task t has no JSON result: it is RUNNING",
  });
  const pickled = create(TaskResultSchema, {
    taskId,
    status: Task_Status.COMPLETED,
    resultPickle: new Uint8Array([0x80]),
    resultRepr: "{1, 2}",
  });
  assert.throws(() => resultOf(pickled), NoJsonValueError);
  assert.throws(() => resultOf(pickled), /not JSON: \{1, 2\}/);
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.CANCELLED })), TaskFailedError);
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.CANCELLED })), { name: "TaskCancelledError" });
});
