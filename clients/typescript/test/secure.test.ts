import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
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
    assert.match(error.message, /its certificate is refused .*: check the CA/);
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

  test("TLS to plain text", async () => {
    const plain = await startServer();
    const client = createClient(plain.grpcAddress, { ca, token: "" });
    try {
      await assert.rejects(client.rpc.getServerInfo({}), /the server speaks plain text and this client TLS/);
    } finally {
      client.close();
      await plain.stop();
    }
  });

  test("a server that wants a certificate gets it, and what it says without one is told", async () => {
    const at = (name: string) => join(folder, name);
    const [cert, key, authority] = await Promise.all(["server.pem", "server-key.pem", "ca.pem"].map((name) => readFile(at(name))));
    const wants = createSecureServer({ cert: cert!, key: key!, ca: authority!, requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.3" });
    wants.on("stream", (stream) => stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "7" }, { endStream: true }));
    wants.listen(0, "127.0.0.1");
    await once(wants, "listening");
    const address = `127.0.0.1:${String((wants.address() as AddressInfo).port)}`;
    const ask = async (options: ClientOptions) => {
      const client = createClient(address, { ca, token: "", retryMs: 2000, ...options });
      try {
        return await client.rpc.getServerInfo({}).then(() => assert.fail("it answers nothing"), ConnectError.from);
      } finally {
        client.close();
      }
    };
    try {
      const none = await ask({});
      assert.equal(none.code, Code.Unavailable);
      assert.match(none.message, /it refuses this client's certificate, or wants one \(.*certificate required\): .*cert, key/);
      assert.equal((await ask({ cert: at("client.pem"), key: at("client-key.pem") })).code, Code.PermissionDenied);
    } finally {
      wants.close();
    }
    assert.equal(await attempt({ ca, cert: at("client.pem"), key: at("client-key.pem"), token: tokens["client"]! }), undefined);
  });

  test("files that are none, or of another kind", async () => {
    const empty = join(folder, "empty.pem");
    await writeFile(empty, "");
    for (const [options, word] of [
      [{ ca: join(folder, "none.pem") }, /the CA \(ca, TREADLE_TLS_CA\): .*none\.pem/],
      [{ ca: empty }, /the CA .*: there is no certificate in PEM in .*empty\.pem/],
      [{ ca, cert: ca, key: ca }, /the key \(key\): there is no private key in PEM in .*ca\.pem/],
      [{ ca, cert: join(folder, "none.pem"), key: empty }, /the certificate \(cert\): .*none\.pem/],
    ] as const) {
      assert.throws(
        () => createClient("localhost:1", options),
        (error: unknown) => error instanceof TypeError && word.test(error.message),
      );
    }
  });
});
