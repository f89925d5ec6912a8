import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import {
  ClientClosedError,
  createClient,
  reasonOf,
  TaskCancelledError,
  TaskFailedError,
  TaskUnfinishedError,
  type Client,
  type RegisteredFunction,
  type Status,
} from "../src/index.js";
import { startServer, type Server } from "./server.js";

const SOURCES = {
  double: "def double(x):\n    return 2 * x\n",
  add: "def add(a, b=0, *, c=0):\n    print('adding')\n    return a + b + c\n",
  fail: 'def fail():\n    raise ValueError("no such luck")\n',
  flaky: "def flaky(x):\n    if x == 3:\n        raise KeyError(x)\n    return x\n",
  odd: "def odd():\n    return {1, 2}\n",
  big: "def big():\n    return 2 ** 70\n",
  sleep: "import time\ndef sleep(s):\n    time.sleep(s)\n    return s\n",
};

const NO_TASK = "00000000-0000-7000-8000-000000000000";

describe("a client of a real server", { timeout: 120_000 }, () => {
  let server: Server;
  let client: Client;
  const fns = {} as Record<keyof typeof SOURCES, RegisteredFunction>;

  before(async () => {
    server = await startServer();
    client = createClient(server.grpcAddress);
    for (const [name, source] of Object.entries(SOURCES)) {
      fns[name as keyof typeof SOURCES] = await client.register({ name, source });
    }
  });
  after(async () => {
    client?.close();
    await server?.stop();
  });

  /** Waits until a task has one of these statuses. */
  async function reached(id: string, ...wanted: Status[]): Promise<Status> {
    for (;;) {
      const status = await client.task(id).status();
      if (wanted.includes(status)) return status;
      assert.ok(!["COMPLETED", "FAILED", "CANCELLED"].includes(status), `task ${id} is ${status}, want ${wanted.join(" or ")}`);
    }
  }

  /** How many tasks of a function there are. */
  async function recorded(name: string): Promise<number> {
    return (await client.rpc.listTasks({ filter: `function = "${name}"`, pageSize: 1000 })).tasks.length;
  }

  test("registers source, and calls it by what it gave, by id and by name", async () => {
    assert.match(fns.double.id, /^[0-9a-f-]{36}$/);
    assert.equal(fns.double.runtime, "python");
    assert.ok(fns.double.createdAt instanceof Date);
    for (const fn of [fns.double, fns.double.id, "double"]) {
      assert.equal(await client.call<number>(fn, [21]), 42);
    }
    assert.deepEqual(await client.function("double"), fns.double);
    assert.equal(await client.call(fns.add, [1, 2], { kwargs: { c: 3 } }), 6);
    assert.equal(await client.call(fns.double, [null]).catch((error: unknown) => (error as TaskFailedError).exceptionType), "TypeError");
  });

  test("a transient registration is one for all", async () => {
    const registration = { name: "once", source: "def once():\n    return 1\n", transient: true };
    assert.equal((await client.register(registration)).id, (await client.register(registration)).id);
  });

  test("a function that failed is told with its exception and traceback", async () => {
    await assert.rejects(client.call(fns.fail), (error: unknown) => {
      assert.ok(error instanceof TaskFailedError && !(error instanceof TaskCancelledError));
      assert.equal(error.status, "FAILED");
      assert.equal(error.errorType, "FunctionExecutionFailure");
      assert.equal(error.exceptionType, "ValueError");
      assert.equal(error.reason, "no such luck");
      assert.match(error.traceback, /raise ValueError/);
      assert.match(error.message, /^task [0-9a-f-]{36}: ValueError: no such luck$/);
      return true;
    });
  });

  test("values that are no JSON, or more exact than a number", async () => {
    await assert.rejects(client.call(fns.odd), { name: "NoJsonValueError", message: /\{1, 2\}/ });
    const result = await (await client.submit(fns.big)).wait();
    assert.equal(result.json, String(2n ** 70n));
  });

  test("submits, and tells status, record and logs of the task", async () => {
    const task = await client.submit<number>(fns.add, [1], { options: { priority: 7, timeoutMs: 60_000, functionRetries: 1 } });
    assert.equal(await task.result(), 1);
    assert.equal(await task.result({ waitMs: 0 }), 1);
    assert.equal(await task.status(), "COMPLETED");
    assert.equal(await task.logs(), "adding\n");
    const record = await task.record();
    assert.equal(record.functionName, "add");
    assert.deepEqual([record.options.priority, record.options.timeoutMs, record.options.functionRetries], [7, 60_000, 1]);
    assert.ok(record.finishedAt !== undefined && record.createdAt !== undefined && record.finishedAt >= record.createdAt);
    assert.equal(record.attempts[0]?.end, "succeeded");
    assert.equal(await client.task<number>(task.id.toUpperCase()).result(), 1);
  });

  test("what is submitted at once travels together, and one that is refused takes no other with it", async () => {
    const none = "00000000-0000-7000-8000-00000000beef";
    const all = await Promise.allSettled([1, 2, 3].map((x) => client.submit<number>(x === 2 ? none : fns.double, [x])));
    assert.deepEqual(
      all.map(({ status }) => status),
      ["fulfilled", "rejected", "fulfilled"],
    );
    assert.equal(reasonOf((all[1] as PromiseRejectedResult).reason), "NOT_FOUND");
    // Refused for a field, which refuses a batch as a whole.
    const mixed = await Promise.allSettled([1, 2, 3].map((x) => client.submit(fns.double, [x], { requestId: x === 2 ? "x".repeat(200) : `id ${String(x)}` })));
    assert.deepEqual(
      mixed.map(({ status }) => status),
      ["fulfilled", "rejected", "fulfilled"],
    );
    assert.equal(reasonOf((mixed[1] as PromiseRejectedResult).reason), "INVALID_REQUEST");
  });

  test("the same request id is the same task", async () => {
    const [a, b] = await Promise.all([client.submit(fns.double, [5], { requestId: "five" }), client.submit(fns.double, [5], { requestId: "five" })]);
    assert.equal(a.id, b.id);
    await assert.rejects(client.submit(fns.double, [6], { requestId: "five" }), (error: unknown) => reasonOf(error) === "REQUEST_ID_CONFLICT");
  });

  test("many calls at once", async () => {
    const values = await Promise.all(Array.from({ length: 300 }, (_, i) => client.call<number>(fns.double, [i])));
    assert.deepEqual(
      values,
      values.map((_, i) => 2 * i),
    );
  });

  test("waits for many tasks, each once, failed ones too", async () => {
    const tasks = await Promise.all([1, 2, 3, 4].map((x) => client.submit<number>(fns.flaky, [x])));
    const seen = new Map<string, Status>();
    for await (const result of client.wait([...tasks, tasks[0]?.id ?? ""])) {
      assert.ok(!seen.has(result.taskId));
      seen.set(result.taskId, result.status);
      if (result.status === "FAILED") assert.throws(() => result.value(), TaskFailedError);
    }
    assert.deepEqual(
      tasks.map(({ id }) => seen.get(id)),
      ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"],
    );
    assert.deepEqual(await Array.fromAsync(client.wait([])), []);
  });

  test("waits for more tasks than one stream may have", async () => {
    const tasks = [];
    for (let i = 0; i < 10_001; i += 1000) {
      tasks.push(...(await Promise.all(Array.from({ length: Math.min(1000, 10_001 - i) }, (_, k) => client.submit<number>(fns.double, [i + k])))));
    }
    let sum = 0;
    for await (const result of client.wait<number>(tasks)) sum += result.value();
    assert.equal(sum, 10_000 * 10_001);
    await assert.rejects(Array.fromAsync(client.wait([NO_TASK])), (error: unknown) => reasonOf(error) === "NOT_FOUND");
  });

  test("watches a task to its end, and lists functions and tasks", async () => {
    const task = await client.submit(fns.sleep, [0.2], { options: { priority: 9 } });
    const seen: Status[] = [];
    for await (const record of task.watch()) {
      assert.equal(record.id, task.id);
      seen.push(record.status);
    }
    assert.equal(seen.at(-1), "COMPLETED");
    assert.deepEqual(seen, [...new Set(seen)], "each once");
    await assert.rejects(client.task(NO_TASK).watch().next(), (error: unknown) => reasonOf(error) === "NOT_FOUND");

    const gone = await client.register({ name: "gone", source: "def gone(): pass\n" });
    await client.call(gone);
    const [newest] = await Array.fromAsync(client.functions());
    assert.deepEqual(newest, gone);
    const [record] = await Array.fromAsync(client.tasks('function = "gone" AND status = COMPLETED'));
    assert.equal(record?.functionId, gone.id);
    await client.deleteFunction(gone);
    await assert.rejects(client.function(gone), (error: unknown) => reasonOf(error) === "NOT_FOUND");
    let count = 0; // more than a page
    for await (const { id } of client.tasks()) count += id === "" ? 0 : 1;
    assert.ok(count > 1000, String(count));

    const info = await client.info();
    assert.deepEqual([info.durability, info.maxPayload, info.retentionMs], ["embedded", 64 << 20, 24 * 3600 * 1000]);
    assert.notEqual(info.version, "");
  });

  test("a task that does not exist fails its own wait alone", async () => {
    const task = await client.submit<number>(fns.sleep, [0.2]);
    const [none, value] = await Promise.allSettled([client.task(NO_TASK).result(), task.result()]);
    assert.equal(reasonOf((none as PromiseRejectedResult).reason), "NOT_FOUND");
    assert.equal((value as PromiseFulfilledResult<number>).value, 0.2);
  });

  test("a wait that is too short says which task, and how far it is", async () => {
    const task = await client.submit<number>(fns.sleep, [60]);
    await reached(task.id, "RUNNING");
    for (const wait of [() => task.result({ waitMs: 50 }), () => task.result({ waitMs: 0 }), () => Array.fromAsync(client.wait([task], { waitMs: 50 }))]) {
      await assert.rejects(wait, (error: unknown) => {
        assert.ok(error instanceof TaskUnfinishedError);
        assert.equal(error.taskId, task.id);
        assert.equal(error.status, "RUNNING");
        assert.match(error.message, /^task [0-9a-f-]{36} of "sleep" is RUNNING; it goes on/);
        return true;
      });
    }
    assert.equal(await task.cancel({ onlyQueued: true }), false, "it runs");
    assert.equal(await task.cancel(), true);
    assert.equal(await task.cancel(), true, "it stays cancelled");
    await assert.rejects(task.result(), TaskCancelledError);
    await assert.rejects(client.call(fns.sleep, [5], { waitMs: 100 }), (error: unknown) => {
      assert.ok(error instanceof TaskUnfinishedError && error.taskId !== undefined, String(error));
      assert.ok(error.status === "RUNNING" || error.status === "QUEUED", String(error));
      return true;
    });
    const { tasks } = await client.rpc.listTasks({ filter: "status = RUNNING" });
    await Promise.all(tasks.map(({ taskId }) => client.task(taskId).cancel()));
  });

  test("a task that has not started is cancelled, one that has finished is not", async () => {
    const done = await client.submit(fns.double, [1]);
    await done.result();
    assert.equal(await done.cancel(), false);
    const blockers = await Promise.all([1, 2].map(() => client.submit(fns.sleep, [60])));
    await Promise.all(blockers.map(({ id }) => reached(id, "RUNNING")));
    const queued = await client.submit(fns.double, [1], { options: { priority: 0 } });
    assert.equal(await queued.cancel({ onlyQueued: true }), true);
    await Promise.all(blockers.map((task) => task.cancel()));
  });

  test("a signal ends the wait, and the task only when that is asked for", async () => {
    for (const cancelOnAbort of [false, true]) {
      const task = await client.submit(fns.sleep, [60]);
      const stop = new AbortController();
      const ended = assert.rejects(task.result({ signal: stop.signal, cancelOnAbort }), { message: "enough" });
      stop.abort(new Error("enough"));
      await ended;
      const status = await task.status();
      assert.equal(status === "CANCELLED", cancelOnAbort, status);
      await task.cancel();
    }
    await assert.rejects(client.call(fns.double, [1], { signal: AbortSignal.abort() }), { name: "AbortError" });
  });

  test("a call with cancelOnAbort leaves no task behind, whenever it is aborted", async () => {
    const pause = await client.register({ name: "pause", source: "import time\ndef pause(i):\n    time.sleep(60)\n" });
    const calls = Array.from({ length: 20 }, async (_, i) => {
      // From before the request has left to while the task runs.
      const signal = AbortSignal.timeout(i * 5);
      await assert.rejects(client.call(pause, [i], { signal, cancelOnAbort: true }), { name: "TimeoutError" });
    });
    await Promise.all(calls);
    const { tasks } = await client.rpc.listTasks({ filter: 'function = "pause"', pageSize: 1000 });
    for (const task of tasks) assert.equal(await client.task(task.taskId).status(), "CANCELLED");
  });

  test("maps in order, with a bounded number under way", async () => {
    const values = [];
    let read = 0;
    function* items(): Generator<number> {
      for (; read < 50; read++) yield read;
    }
    for await (const value of client.map<number>(fns.double, items(), { inFlight: 7 })) {
      values.push(value);
      assert.ok(read <= values.length + 7, `${String(read)} were read when ${String(values.length)} were taken`);
    }
    assert.deepEqual(values, Array.from({ length: 50 }, (_, i) => 2 * i));
    assert.deepEqual(await Array.fromAsync(client.map(fns.add, [[1, 2], [3]], { spread: true, kwargs: { c: 1 } })), [4, 4]);
    assert.deepEqual(await Array.fromAsync(client.map(fns.double, [])), []);
    async function* later(): AsyncGenerator<number> {
      yield 1;
      await new Promise(setImmediate);
      yield 2;
    }
    assert.deepEqual(await Array.fromAsync(client.map(fns.double, later())), [2, 4]);
  });

  test("a map of many", async () => {
    let sum = 0;
    for await (const value of client.map<number>(fns.double, Array(3000).keys())) sum += value;
    assert.equal(sum, 3000 * 2999);
  });

  test("a value is there although the next item is not", async () => {
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    async function* items(): AsyncGenerator<number> {
      yield 1;
      await held;
    }
    const values = client.map<number>(fns.double, items());
    assert.deepEqual(await values.next(), { value: 2, done: false });
    release();
    assert.equal((await values.next()).done, true);
  });

  test("a map tells a failure in its place, and cancels the rest", async () => {
    const values: unknown[] = [];
    await assert.rejects(
      async () => {
        for await (const value of client.map(fns.flaky, [1, 2, 3, 4])) values.push(value);
      },
      (error: unknown) => error instanceof TaskFailedError && error.exceptionType === "KeyError",
    );
    assert.deepEqual(values, [1, 2]);
    await assert.rejects(Array.fromAsync(client.map(fns.double, [1, undefined])), /args\[0\] is undefined/);
    function* broken(): Generator<number> {
      yield 1;
      throw new Error("no more");
    }
    const taken = client.map(fns.double, broken());
    assert.equal((await taken.next()).value, 2);
    await assert.rejects(taken.next(), /no more/);
  });

  test("whatever ends a map early cancels what it has under way, and lets go of its items", async () => {
    const nap = await client.register({ name: "nap", source: "import time\ndef nap(s):\n    time.sleep(s)\n    return s\n" });
    let closed = 0;
    function* items(): Generator<number> {
      try {
        yield 0;
        for (;;) yield 60;
      } finally {
        closed++;
      }
    }
    for await (const value of client.map(nap, items(), { inFlight: 5 })) {
      assert.equal(value, 0);
      break;
    }
    await assert.rejects(
      async () => {
        for await (const value of client.map(nap, items(), { inFlight: 5, waitMs: 300 })) assert.equal(value, 0);
      },
      (error: unknown) => error instanceof TaskUnfinishedError && error.taskId !== undefined,
    );
    const stop = new AbortController();
    await assert.rejects(
      async () => {
        for await (const value of client.map(nap, items(), { inFlight: 5, signal: stop.signal })) {
          assert.equal(value, 0);
          stop.abort(new Error("enough"));
        }
      },
      { message: "enough" },
    );
    assert.equal(closed, 3);
    const { tasks } = await client.rpc.listTasks({ filter: 'function = "nap"', pageSize: 1000 });
    assert.ok(tasks.length >= 15);
    for (const { taskId } of tasks) {
      const status = await client.task(taskId).status();
      assert.ok(status === "CANCELLED" || status === "COMPLETED", status);
    }
  });

  test("junk is refused in words before anything is sent", async () => {
    const before = await recorded("double");
    const loose = client as unknown as Record<"call" | "submit" | "register" | "task", (...args: unknown[]) => Promise<unknown>>;
    for (const [attempt, word] of [
      [() => loose.call("double", 21), /the arguments are 21: want an array of them, for example \[21\]/],
      [() => loose.call(undefined, []), /the function is undefined/],
      [() => loose.call(() => 1, []), /no JavaScript/],
      [() => loose.call("", []), /the function is ""/],
      [() => loose.call("double", [1], { timeout: 5 }), /options\.timeout is unknown: want waitMs/],
      [() => loose.call("double", [1], { waitMs: "5s" }), /options\.waitMs is "5s"/],
      [() => loose.call("double", [1], { waitMs: NaN }), /options\.waitMs is NaN/],
      [() => loose.call("double", [1], { signal: 1 }), /options\.signal is 1/],
      [() => loose.call("double", [1], { kwargs: [1] }), /options\.kwargs is an array/],
      [() => loose.call("double", [1], { kwargs: { x: NaN } }), /kwargs\.x is NaN/],
      [() => loose.call("double", [1], 5), /options is 5: want an object/],
      [() => loose.call("double", [1], { requestId: 5 }), /options\.requestId is 5/],
      [() => loose.submit("double", [1], { options: { prioritty: 1 } }), /options\.options\.prioritty is unknown/],
      [() => loose.submit("double", [1], { options: { priority: 1.5 } }), /options\.options\.priority is 1\.5/],
      [() => loose.submit("double", [1], { options: { timeoutMs: 0 } }), /options\.options\.timeoutMs is 0/],
      [() => loose.submit("double", [1], { options: { deadline: 5 } }), /options\.options\.deadline is 5: want a Date/],
      [() => loose.submit("double", [1n]), /args\[0\] is a BigInt/],
      [() => loose.register({ name: "x" }), /source is undefined/],
      [() => loose.register(() => 1), /the registration is a function/],
      [() => loose.register(), /the registration's name is undefined/],
      [async () => loose.task("7"), /the task id is "7": want a UUID/],
      [() => Array.fromAsync(client.map("double", 5 as unknown as [])), /the items are 5/],
      [() => Array.fromAsync(client.map("double", [1], { inFlight: 0 })), /options\.inFlight is 0/],
      [() => Array.fromAsync(client.map("double", [1], { inFlight: 100_001 })), /options\.inFlight is 100001: want an integer from 1 to 100000/],
      [() => Array.fromAsync(client.map("double", [1], { spread: true })), /the arguments are 1/],
    ] as const) {
      await assert.rejects(attempt as () => Promise<unknown>, (error: unknown) => {
        assert.ok(error instanceof TypeError, String(error));
        assert.match(error.message, word);
        return true;
      });
    }
    assert.equal(await recorded("double"), before);
    assert.deepEqual(await Array.fromAsync(client.map("double", [1], { inFlight: 100_000 })), [2]);
    await assert.rejects(client.call("double", [1], { options: { priority: 99 } }), (error: unknown) => reasonOf(error) === "INVALID_REQUEST");
    await assert.rejects(client.call("no such function"), (error: unknown) => reasonOf(error) === "NOT_FOUND");
  });

  test("closing ends what is under way, and tasks go on", async () => {
    const own = createClient(server.grpcAddress);
    const task = await own.submit(fns.sleep, [60]);
    const ended = [own.call(fns.sleep, [60]), task.result(), Array.fromAsync(own.wait([task]))].map((wait) => assert.rejects(wait, ClientClosedError));
    await reached(task.id, "RUNNING");
    own.close();
    own.close();
    await Promise.all(ended);
    for (const late of [() => own.call(fns.double, [1]), () => own.submit(fns.double, [1]), () => task.result(), () => task.status(), () => Array.fromAsync(own.map(fns.double, [1]))]) {
      await assert.rejects(late, ClientClosedError);
    }
    assert.equal(await client.task(task.id).status(), "RUNNING");
    const { tasks } = await client.rpc.listTasks({ filter: 'function = "sleep"', pageSize: 1000 });
    await Promise.all(tasks.map(({ taskId }) => client.task(taskId).cancel()));
  });
});
