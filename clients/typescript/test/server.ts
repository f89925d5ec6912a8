import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** A real `treadle up`, with its data in a directory of its own. */
export interface Server {
  grpcAddress: string;
  httpAddress: string;
  /** Ends the process without a word. */
  kill(): void;
  /** Stops the process, waits for its end and removes its data. */
  stop(): Promise<void>;
}

// This file runs as dist/test/server.js.
const packageRoot = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

const binary = process.env["TREADLE_BIN"] ?? resolve(packageRoot, "../../bin/treadle");

/** Runs a command of the binary to its end and returns what it printed. */
export function run(...args: string[]): string {
  return execFileSync(binary, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
}

/** Starts the binary of TREADLE_BIN (default: bin/treadle of the repository) on free ports. */
export async function startServer(...flags: string[]): Promise<Server> {
  const dataDir = await mkdtemp(join(tmpdir(), "treadle-ts-"));
  const child = spawn(
    binary,
    ["up", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--slots", "2", "--data-dir", dataDir, "--json", ...flags],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  const ended = once(child, "exit");
  let log = "";
  child.stderr.on("data", (data: Buffer) => {
    log = (log + data.toString()).slice(-16384);
  });
  const stop = async () => {
    if (child.pid !== undefined) {
      child.kill("SIGTERM");
      await ended;
    }
    await rm(dataDir, { recursive: true, force: true });
  };
  try {
    const line = await firstLine(child, ended);
    const ready = JSON.parse(line) as { grpc_addr: string; http_addr: string };
    return { grpcAddress: ready.grpc_addr, httpAddress: ready.http_addr, kill: () => child.kill("SIGKILL"), stop };
  } catch (error) {
    await stop();
    throw new Error(`${binary} did not get ready; it said:\n${log}`, { cause: error });
  }
}

async function firstLine(child: ChildProcess, ended: Promise<unknown[]>): Promise<string> {
  if (child.stdout === null) {
    throw new Error("the server has no stdout");
  }
  const lines = createInterface({ input: child.stdout });
  const line = once(lines, "line").then(([text]) => text as string);
  const early = ended.then(([code, signal]) => {
    throw new Error(`ended early: code ${String(code)}, signal ${String(signal)}`);
  });
  return Promise.race([line, early]);
}
