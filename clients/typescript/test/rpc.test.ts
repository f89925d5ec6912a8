import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Code, ConnectError, createClient, errorInfoOf, reasonOf, TaskFailedError, type Client } from "../src/index.js";
import { encodeJson, resultOf, Task_Status } from "../src/rpc.js";
import { startServer, type Server } from "./server.js";

describe("the API as it is on the wire", { timeout: 120_000 }, () => {
  let server: Server;
  let client: Client;

  before(async () => {
    server = await startServer();
    client = createClient(server.grpcAddress);
  });
  after(async () => {
    client?.close();
    await server?.stop();
  });

  test("registers source and calls it", async () => {
    const double = await client.rpc.registerFunction({ name: "double", source: "def double(x):\n    return 2 * x\n" });
    assert.match(double.functionId, /^[0-9a-f-]{36}$/);

    const result = await client.rpc.call({ function: double.functionId, input: { args: encodeJson([21]) } });
    assert.equal(result.status, Task_Status.COMPLETED);
    assert.equal(resultOf<number>(result), 42);
  });

  test("executes in the background and awaits the results in any order", async () => {
    await client.rpc.registerFunction({
      name: "greet",
      source: 'def greet(name, mark="."):\n    return f"hello {name}{mark}"\n',
    });
    const names = ["ada", "grace", "zoë"];
    const batch = await client.rpc.executeBatch({
      requests: names.map((name) => ({ function: "greet", args: encodeJson([name]), kwargs: encodeJson({ mark: "!" }) })),
    });
    const ids = batch.items.map((item) => item.taskId);
    assert.equal(new Set(ids).size, names.length);

    const values = new Map<string, string>();
    for await (const { results } of client.rpc.awaitResults({ taskIds: ids })) {
      for (const result of results) {
        values.set(result.taskId, resultOf<string>(result));
      }
    }
    assert.deepEqual(
      ids.map((id) => values.get(id)),
      names.map((name) => `hello ${name}!`),
    );
  });

  test("tells a function's exception", async () => {
    await client.rpc.registerFunction({ name: "fail", source: 'def fail():\n    raise ValueError("no such luck")\n' });
    const result = await client.rpc.call({ function: "fail", input: {} });
    assert.equal(result.status, Task_Status.FAILED);
    assert.throws(
      () => resultOf(result),
      (error: unknown) => {
        assert.ok(error instanceof TaskFailedError);
        assert.equal(error.taskId, result.taskId);
        assert.equal(error.errorType, "FunctionExecutionFailure");
        assert.equal(error.exceptionType, "ValueError");
        assert.match(error.message, /no such luck/);
        return true;
      },
    );
  });

  test("rejects with the server's code", async () => {
    await assert.rejects(client.rpc.getTask({ taskId: "00000000-0000-7000-8000-000000000000" }), (error: unknown) => {
      assert.equal(ConnectError.from(error).code, Code.NotFound);
      return true;
    });
  });

  test("tells the reason of an error, with its metadata", async () => {
    await assert.rejects(client.rpc.getTask({ taskId: "00000000-0000-7000-8000-000000000000" }), (error: unknown) => {
      assert.equal(reasonOf(error), "NOT_FOUND");
      return true;
    });
    await client.rpc.registerFunction({ name: "one", source: "def one():\n    return 1\n" });
    await assert.rejects(client.rpc.execute({ function: "one", args: encodeJson([]), options: { priority: 99 } }), (error: unknown) => {
      const info = errorInfoOf(error);
      assert.equal(info?.reason, "INVALID_REQUEST");
      assert.equal(info.domain, "treadle.dev");
      assert.equal(info.metadata["field"], "options.priority");
      return true;
    });
    for (const none of [undefined, new Error("x"), new ConnectError("x", Code.Unavailable)]) {
      assert.equal(reasonOf(none), undefined);
    }
  });
});
