import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { encodeJson, resultOf, Task_Status, TaskResultSchema } from "../src/rpc.js";
import { toJson } from "../src/json.js";

test("values survive the way there and back", () => {
  for (const value of [null, 0, -1.5, "", "naïve 🧵", [], {}, { a: [1, { b: null }] }]) {
    const result = create(TaskResultSchema, { status: Task_Status.COMPLETED, result: encodeJson(value) });
    assert.deepEqual(resultOf(result), value);
  }
  assert.equal(new TextDecoder().decode(encodeJson(new Date(0))), '"1970-01-01T00:00:00.000Z"');
});

test("what JSON cannot hold is refused, and its place is named", () => {
  const cycle: unknown[] = [];
  cycle.push([cycle]);
  let deep: unknown = 1;
  for (let i = 0; i < 501; i++) deep = [deep];
  const hole = [1, , 2];
  for (const [value, message] of [
    [undefined, /^args is undefined/],
    [[NaN], /^args\[0\] is NaN/],
    [[{ a: [1, -Infinity] }], /^args\[0\]\.a\[1\] is -Infinity/],
    [[{ a: undefined }], /^args\[0\]\.a is undefined/],
    [[1n], /^args\[0\] is a BigInt/],
    [[() => 1], /^args\[0\] is a function/],
    [[Symbol("x")], /^args\[0\] is a symbol/],
    [hole, /^args\[1\] is undefined/],
    [[{ "a b": NaN }], /^args\[0\]\["a b"\] is NaN/],
    [[new Map()], /^args\[0\] is a Map/],
    [[new Set()], /^args\[0\] is a Set/],
    [[Promise.resolve()], /^args\[0\] is a Promise: await/],
    [[Buffer.from("x")], /^args\[0\] is binary data/],
    [[new Float64Array(1)], /^args\[0\] is binary data/],
    [[/x/], /^args\[0\] is a RegExp/],
    [[{ toJSON: () => ({ a: NaN }) }], /^args\[0\]\.a is NaN/],
    [cycle, /^args\[0\]\[0\] is a part of itself/],
    [deep, /is nested more than 500 deep$/],
  ] as const) {
    assert.throws(
      () => toJson(value, "args"),
      (error: unknown) => error instanceof TypeError && message.test(error.message),
      String(message),
    );
  }
  const twice = { a: 1 };
  assert.equal(new TextDecoder().decode(toJson([twice, twice], "args")), '[{"a":1},{"a":1}]');
});

test("a result without a JSON value is an error that says why", () => {
  const taskId = "t";
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.RUNNING })), {
    name: "TaskUnfinishedError",
    message: "task t is RUNNING",
  });
  const pickled = create(TaskResultSchema, {
    taskId,
    status: Task_Status.COMPLETED,
    resultPickle: new Uint8Array([0x80]),
    resultRepr: "{1, 2}",
  });
  assert.throws(() => resultOf(pickled), { name: "NoJsonValueError", message: /not JSON: \{1, 2\}/ });
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.FAILED })), { name: "TaskFailedError" });
  assert.throws(() => resultOf(create(TaskResultSchema, { taskId, status: Task_Status.CANCELLED })), { name: "TaskCancelledError" });
});
