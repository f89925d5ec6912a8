import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { KNOWN_REASONS } from "../src/index.js";
import { startServer, type Server } from "./server.js";

// This file runs as dist/test/docs.test.js.
const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const docs = resolve(root, "../../docs");

test("the known reasons are those that docs/errors.md has for gRPC", async () => {
  const text = await readFile(join(docs, "errors.md"), "utf8");
  const rows = Array.from(text.matchAll(/^\| `([A-Z_]+)` \| [A-Z_]+ \| (.*)$/gm), ([, reason, rest]) => ({ reason, rest: rest ?? "" }));
  const told = rows.filter(({ rest }) => !rest.includes("| over REST under")).map(({ reason }) => reason);
  assert.ok(rows.length > told.length, "some reason is of REST alone");
  assert.deepEqual(told.toSorted(), KNOWN_REASONS.toSorted());
});

describe("programs of the documentation", { timeout: 120_000 }, () => {
  let server: Server;
  let folder: string;
  before(async () => {
    server = await startServer();
    folder = await mkdtemp(join(tmpdir(), "treadle-ts-docs-"));
    // What npm install makes of a folder.
    await mkdir(join(folder, "node_modules", "@treadle"), { recursive: true });
    await symlink(root, join(folder, "node_modules", "@treadle", "client"));
  });
  after(async () => {
    await server?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  for (const [page, prints] of [
    [join(root, "README.md"), "42\n2\n4\n6\n"],
    [join(docs, "typescript.md"), "1.414\n1\n2\n3\nValueError math domain error\n"],
  ] as const) {
    test(`the first program of ${page.slice(resolve(root, "../..").length + 1)} does what is said of it`, async () => {
      const program = /```js\n(.*?)```/s.exec(await readFile(page, "utf8"))?.[1];
      assert.ok(program !== undefined, "there is one");
      const file = join(folder, "first.mjs");
      await writeFile(file, program);
      const { stdout } = await promisify(execFile)(process.execPath, [file], { env: { ...process.env, TREADLE_ADDRESS: server.grpcAddress }, timeout: 60_000 });
      assert.equal(stdout, prints);
    });
  }
});
