import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Code, ConnectError, createClient } from "../src/index.js";

test("a server may have megabytes on their way to a client", { timeout: 30_000 }, async () => {
  // Over a line of 40 ms there and back the windows of HTTP/2, 64 KiB, are 1 MiB/s.
  const server = createServer();
  server.on("stream", (stream) => {
    const answer = () => {
      const { session } = stream;
      if (session === undefined || session.destroyed || stream.destroyed) return;
      const wide = (session.remoteSettings.initialWindowSize ?? 0) >= 4 << 20 && (session.state.remoteWindowSize ?? 0) >= 16 << 20;
      if (!wide) {
        setImmediate(answer); // the update is on its way; a call that gets no answer fails the test
        return;
      }
      stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": String(Code.PermissionDenied) }, { endStream: true });
    };
    answer();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = createClient(`127.0.0.1:${String((server.address() as AddressInfo).port)}`, { token: "", ca: "" });
  try {
    await assert.rejects(client.rpc.getServerInfo({}, { timeoutMs: 10_000 }), (error: unknown) => ConnectError.from(error).code === Code.PermissionDenied);
  } finally {
    client.close();
    server.close();
  }
});
