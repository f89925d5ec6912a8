import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

// This file runs as dist/test/package.test.js.
const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

test("the tarball has the licence, and the sources that its source maps name", () => {
  const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" });
  const packs = JSON.parse(listed) as { files: { path: string }[] }[];
  const files = new Set(packs[0]?.files.map((file) => file.path));
  assert.ok(files.has("LICENSE") && files.has("README.md") && files.has("dist/src/index.d.ts"), [...files].join());
  assert.equal(readFileSync(join(root, "LICENSE"), "utf8"), readFileSync(join(root, "../../LICENSE"), "utf8"));
  const maps = [...files].filter((file) => file.endsWith(".js.map"));
  assert.ok(maps.length > 2, [...files].join());
  for (const map of maps) {
    const { sources } = JSON.parse(readFileSync(join(root, map), "utf8")) as { sources: string[] };
    for (const source of sources) {
      assert.ok(files.has(join(dirname(map), source)), `${map} names ${source}, which is not in the tarball`);
    }
  }
});
