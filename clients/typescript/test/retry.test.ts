import assert from "node:assert/strict";
import { createServer, connect as dial, type Server as Proxy, type Socket } from "node:net";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { Code, ConnectError, createClient, type TaskRecord } from "../src/index.js";
import { startServer, type Server } from "./server.js";

/** Hands a port's connections on to `target`, and cuts the first `cuts` of them once the server has answered. */
async function cuttingProxy(target: string, cuts: number): Promise<{ proxy: Proxy; address: string; cut: () => number }> {
  let cut = 0;
  const [host, port] = target.split(":") as [string, string];
  const proxy = createServer((near: Socket) => {
    const far = dial(Number(port), host);
    near.on("error", () => far.destroy()).on("close", () => far.destroy());
    far.on("error", () => near.destroy()).on("close", () => near.destroy());
    near.pipe(far);
    far.on("data", (data: Buffer) => {
      // The answer to a call is known by its headers frame (type 1), which is withheld.
      if (cut < cuts && hasHeaders(data)) {
        cut++;
        near.destroy();
        return;
      }
      near.write(data);
    });
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  const { port: own } = proxy.address() as { port: number };
  return { proxy, address: `127.0.0.1:${String(own)}`, cut: () => cut };
}

function hasHeaders(data: Buffer): boolean {
  for (let at = 0; at + 9 <= data.length; at += 9 + data.readUIntBE(at, 3)) {
    if (data[at + 3] === 1) return true;
  }
  return false;
}

/** The status that a watch ends with. */
async function last(watch: AsyncIterable<TaskRecord>): Promise<string> {
  let status = "";
  for await (const record of watch) status = record.status;
  return status;
}

describe("calls while no server answers", { timeout: 120_000 }, () => {
  let server: Server;
  before(async () => {
    server = await startServer();
  });
  after(async () => {
    await server?.stop();
  });

  test("an answer that was lost is found, and nothing is recorded twice", async () => {
    const { proxy, address, cut } = await cuttingProxy(server.grpcAddress, 2);
    const client = createClient(address);
    try {
      const once = await client.register({ name: "once", source: "def once():\n    return 1\n" });
      assert.equal(await client.call(once), 1);
      const { functions } = await client.rpc.listFunctions({});
      assert.equal(functions.filter((f) => f.name === "once").length, 1);
      assert.equal(cut(), 2);
    } finally {
      client.close();
      proxy.close();
    }
  });

  test("what nothing answers is asked again by a connection of its own, and what is under way stays", async () => {
    // The first connection goes dead when it is told to, without a word; the others work.
    let dead = false;
    let connections = 0;
    const [host, port] = server.grpcAddress.split(":") as [string, string];
    const proxy = createServer((near: Socket) => {
      const first = connections++ === 0;
      const far = dial(Number(port), host);
      near.on("error", () => far.destroy()).on("close", () => far.destroy());
      far.on("error", () => near.destroy()).on("close", () => near.destroy());
      near.on("data", (data: Buffer) => (first && dead ? undefined : far.write(data)));
      far.pipe(near);
    });
    proxy.listen(0, "127.0.0.1");
    await once(proxy, "listening");
    const client = createClient(`127.0.0.1:${String((proxy.address() as { port: number }).port)}`, { attemptMs: 300 });
    try {
      const nap = await client.register({ name: "nap", source: "import time\ndef nap(s):\n    time.sleep(s)\n    return s\n" });
      const task = await client.submit<number>(nap, [1]);
      const result = task.result();
      assert.equal(await client.call(nap, [0]), 0); // the stream for the result is open by now
      dead = true;
      const late = await client.submit(nap, [0.5]);
      assert.equal(await late.result({ waitMs: 30_000 }), 0.5);
      assert.equal(connections, 2);
      assert.equal(await result, 1);
      const { tasks } = await client.rpc.listTasks({ filter: 'function = "nap"' });
      assert.equal(tasks.length, 3, "nothing is recorded twice");
    } finally {
      client.close();
      proxy.close();
    }
  });

  test("a connection that does not come about is given up", async () => {
    const silent = createServer();
    silent.listen(0, "127.0.0.1");
    await once(silent, "listening");
    const address = `127.0.0.1:${String((silent.address() as { port: number }).port)}`;
    try {
      for (const [tls, why] of [
        [true, /no server answered at 127.* within 0\.5 s: no connection within 0\.2 s/],
        [false, /no server answered at 127.* within 0\.5 s: nothing has answered within 0\.2 s/],
      ] as const) {
        const client = createClient(address, { tls, attemptMs: 200, retryMs: 500 });
        try {
          await assert.rejects(client.submit("double", [1]), (error: unknown) => {
            assert.equal(ConnectError.from(error).code, Code.Unavailable);
            assert.match(String(error), why);
            return true;
          });
          await assert.rejects(client.call("double", [1], { waitMs: 100 }), {
            name: "TaskUnfinishedError",
            message: /the task of "double" is not recorded yet.*: no server has answered/,
          });
        } finally {
          client.close();
        }
      }
    } finally {
      silent.close();
    }
  });

  test("waits, maps, watches and calls ride through a restart of the server", async () => {
    const folder = await mkdtemp(join(tmpdir(), "treadle-ts-restart-"));
    let own = await startServer("--data-dir", folder);
    // It was away for less than this, and the waits have lasted longer when it goes.
    const client = createClient(own.grpcAddress, { retryMs: 2000 });
    try {
      const nap = await client.register({ name: "nap", source: "import time\ndef nap(s):\n    time.sleep(s)\n    return s\n" });
      const task = await client.submit<number>(nap, [3]);
      const waits = [task.result(), client.call(nap, [3.5]), Array.fromAsync(client.map<number>(nap, Array(8).fill(0.1), { inFlight: 4 })), last(task.watch())];
      const settled = Promise.allSettled(waits);
      // Calls that wait for a server to answer now and then, and no longer than that.
      for (const end = performance.now() + 2200; performance.now() < end; await task.status());
      own.kill();
      await own.stop();
      own = await startServer("--data-dir", folder, "--grpc-addr", own.grpcAddress);
      assert.deepEqual(
        (await settled).map((wait) => (wait.status === "fulfilled" ? wait.value : String(wait.reason))),
        [3, 3.5, Array(8).fill(0.1), "COMPLETED"],
      );
      const { tasks } = await client.rpc.listTasks({ filter: 'function = "nap"' });
      assert.equal(tasks.length, 10, "nothing is recorded twice");
    } finally {
      client.close();
      await own.stop();
      await rm(folder, { recursive: true, force: true });
    }
  });

  test("without retries a connection that breaks is told as one, to calls and to waits", async () => {
    const own = await startServer();
    const client = createClient(own.grpcAddress, { retryMs: 0 });
    try {
      await client.register({ name: "nap", source: "import time\ndef nap(s):\n    time.sleep(s)\n" });
      const task = await client.submit("nap", [60]);
      const waits = [task.result(), client.call("nap", [60])].map((wait) =>
        assert.rejects(wait, (error: unknown) => {
          assert.equal(ConnectError.from(error).code, Code.Unavailable);
          assert.match(String(error), new RegExp(`the connection to ${own.grpcAddress} broke`));
          return true;
        }),
      );
      while ((await task.status()) === "QUEUED");
      own.kill();
      await Promise.all(waits);
    } finally {
      client.close();
      await own.stop();
    }
  });

  test("without retries the first failure is told", async () => {
    const client = createClient("127.0.0.1:1", { retryMs: 0 });
    await assert.rejects(client.rpc.getServerInfo({}), (error: unknown) => ConnectError.from(error).code === Code.Unavailable);
    client.close();
  });

  test("a call's own deadline ends its retries", async () => {
    // Whoever hangs up on each connection may be a server that restarts.
    const proxy = createServer((near: Socket) => near.destroy());
    proxy.listen(0, "127.0.0.1");
    await once(proxy, "listening");
    const { port } = proxy.address() as { port: number };
    const client = createClient(`127.0.0.1:${String(port)}`);
    await assert.rejects(client.rpc.getServerInfo({}, { timeoutMs: 200 }), (error: unknown) => {
      assert.equal(ConnectError.from(error).code, Code.DeadlineExceeded);
      return true;
    });
    client.close();
    proxy.close();
  });

  test("the REST port, a host that does not exist, and a port where nothing listens are told at once", async () => {
    for (const [address, why] of [
      [server.httpAddress, /REST port/],
      ["no-such-host.invalid:50051", /no host of that name/],
      ["127.0.0.1:1", /nothing listens there/],
      ["localhost:1", /nothing listens there/],
    ] as const) {
      const client = createClient(address);
      await assert.rejects(client.rpc.getServerInfo({}), (error: unknown) => {
        assert.equal(ConnectError.from(error).code, Code.Unavailable);
        assert.match(String(error), why);
        return true;
      });
      client.close();
    }
  });
});
