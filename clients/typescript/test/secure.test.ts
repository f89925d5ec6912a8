import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { Code, ConnectError, createClient, type ClientOptions } from "../src/index.js";
import { run, startServer, type Server } from "./server.js";

describe("a client of a server with TLS and tokens", { timeout: 120_000 }, () => {
  let folder: string;
  let server: Server;
  let ca: string;
  const tokens: Record<string, string> = {};

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "treadle-ts-tls-"));
    const at = (name: string) => join(folder, name);
    run("certs", "--dir", folder);
    for (const role of ["client", "worker"]) {
      tokens[role] = run("token", "create", "--role", role, "--file", at("tokens.json"));
    }
    ca = at("ca.pem");
    server = await startServer("--tls-cert", at("server.pem"), "--tls-key", at("server-key.pem"), "--token-file", at("tokens.json"));
  });
  after(async () => {
    await server?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  /** One call with these options; returns the error that it ended in, if any. */
  async function attempt(options: ClientOptions): Promise<ConnectError | undefined> {
    const client = createClient(server.grpcAddress, options);
    try {
      await client.rpc.getServerInfo({});
      return undefined;
    } catch (error) {
      return ConnectError.from(error);
    } finally {
      client.close();
    }
  }

  test("CA and token", async () => {
    assert.equal(await attempt({ ca, token: tokens["client"]! }), undefined);
    assert.equal(await attempt({ ca, tls: true, token: tokens["client"]! }), undefined);
  });

  test("tokens that will not do", async () => {
    assert.equal((await attempt({ ca, token: "" }))?.code, Code.Unauthenticated);
    const wrong = await attempt({ ca, token: tokens["worker"]! });
    assert.equal(wrong?.code, Code.PermissionDenied);
    assert.match(wrong.message, /a worker token/);
  });

  test("plain text to TLS", async () => {
    const error = await attempt({ tls: false, token: tokens["client"]! });
    assert.equal(error?.code, Code.FailedPrecondition);
    assert.match(error.message, /this listener speaks TLS/);
  });

  test("a CA that does not know the server", async () => {
    const error = await attempt({ ca: "system", token: tokens["client"]! });
    assert.ok(error !== undefined);
    assert.match(error.message, /certificate/);
  });

  test("a token does not travel in plain text", () => {
    const token = "secret";
    assert.throws(() => createClient("example.org:1", { token }), /without TLS/);
    assert.throws(() => createClient("example.org:1", { token, ca, tls: false }), /without TLS/);
    for (const options of [{ token, insecure: true }, { token, tls: true }, { token, ca }, { token: "" }]) {
      createClient("example.org:1", options).close();
    }
    for (const address of ["127.0.0.1:1", "localhost:1", "[::1]:1"]) {
      createClient(address, { token }).close();
    }
  });

  test("a CA that is none", () => {
    assert.throws(() => createClient("localhost:1", { ca: join(folder, "none.pem") }), /none\.pem/);
  });
});
