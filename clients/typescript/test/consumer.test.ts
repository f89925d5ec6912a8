import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { startServer, type Server } from "./server.js";

// This file runs as dist/test/consumer.test.js.
const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const run = promisify(execFile);

const USE = `
const double = await client.register({ name: "double", source: "def double(x):\\n    return 2 * x\\n" });
const { status } = await client.rpc.execute({ function: double.id, args: encodeJson([1]) });
console.log(await client.call(double, [21]), Task_Status[status]);
client.close();
`;

// What a program in TypeScript does with the package, and what the types keep it from.
const TYPED = `
import { createClient, reasonOf, TaskFailedError, type Client, type ClientOptions, type Result, type Status } from "@treadle/client";
import { encodeJson, Task_Status, type Task } from "@treadle/client/rpc";

export async function use(): Promise<number> {
  const options: ClientOptions = { retryMs: 1 };
  const client: Client = createClient("localhost", options);
  const double = await client.register({ name: "double", source: "" });
  const status: Status = await client.task("x").status();
  for await (const value of client.map<number>(double, [1, 2])) if (status === "FAILED") return value;
  for await (const result of client.wait<string>([])) {
    const typed: Result<string> = result;
    if (typed.value().length > 0) return 0;
  }
  const task: Task = await client.rpc.execute({ args: encodeJson([1]) });
  if (task.status === Task_Status.QUEUED && reasonOf(null) === "NOT_FOUND") return 0;
  // @ts-expect-error a typo
  await client.call(double, [1], { timeout: 5 });
  // @ts-expect-error arguments are an array
  await client.call(double, 21);
  const text = await client.call(double, [21]);
  // @ts-expect-error the value is unknown
  text.length;
  try {
    return await client.call<number>(double, [21], { waitMs: 5, options: { timeoutMs: 5 } });
  } catch (error) {
    throw error instanceof TaskFailedError ? new Error(error.traceback) : error;
  }
}
`;

describe("the package, installed from its tarball into an empty folder", { timeout: 240_000 }, () => {
  let server: Server;
  let folder: string;

  before(async () => {
    server = await startServer();
    folder = await mkdtemp(join(tmpdir(), "treadle-ts-consumer-"));
    const { stdout } = await run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", folder], { cwd: root });
    const [pack] = JSON.parse(stdout) as { filename: string }[];
    const { dependencies } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { dependencies: Record<string, string> };
    // What the package says it needs, from where it is installed already: a test asks no registry.
    const files = Object.keys(dependencies).map((name) => [name, `file:${join(root, "node_modules", name)}`]);
    const app = join(folder, "app");
    await mkdir(app);
    const manifest = { private: true, dependencies: { "@treadle/client": `file:../${pack?.filename ?? ""}`, ...Object.fromEntries(files) } };
    await writeFile(join(app, "package.json"), JSON.stringify(manifest));
    await run("npm", ["install", "--offline", "--install-links", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict"], { cwd: app });
  });
  after(async () => {
    await server?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  for (const [name, program] of [
    ["main.mjs", `import { createClient } from "@treadle/client";\nimport { encodeJson, Task_Status } from "@treadle/client/rpc";\nconst client = createClient();${USE}`],
    [
      "main.cjs",
      `const { createClient } = require("@treadle/client");\nconst { encodeJson, Task_Status } = require("@treadle/client/rpc");\nconst client = createClient();\n(async () => {${USE}})();`,
    ],
  ] as const) {
    test(`${name.endsWith("mjs") ? "import" : "require"} gives a client that works`, async () => {
      await writeFile(join(folder, "app", name), program);
      const { stdout, stderr } = await run(process.execPath, [name], {
        cwd: join(folder, "app"),
        env: { ...process.env, TREADLE_ADDRESS: server.grpcAddress },
        timeout: 60_000,
      });
      assert.deepEqual([stdout, stderr], ["42 QUEUED\n", ""]);
    });
  }

  for (const [file, ...flags] of [
    ["typed.mts", "--module", "nodenext"],
    ["typed.cts", "--module", "nodenext"],
    ["typed.ts", "--module", "preserve", "--moduleResolution", "bundler"],
    ["typed.ts", "--module", "esnext", "--moduleResolution", "bundler", "--lib", "es2022,dom"],
  ] as const) {
    test(`its types hold: ${flags.join(" ")} ${file}`, async () => {
      await writeFile(join(folder, "app", file), TYPED);
      const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
      // Declarations are checked, too, and the types of Node are not there.
      const failed = await run(process.execPath, [tsc, "--noEmit", "--strict", "--target", "es2022", "--types", "", ...flags, file], { cwd: join(folder, "app") }).then(
        () => "",
        (error: unknown) => (error as { stdout: string }).stdout,
      );
      assert.equal(failed, "");
    });
  }
});
