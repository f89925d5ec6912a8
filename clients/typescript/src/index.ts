/**
 * TypeScript client of Treadle: register a function once, execute it by id any
 * number of times, watch its tasks and fetch their results.
 *
 * {@link createClient} gives every method of the contract's FabricService, typed from
 * the contract itself; {@link encodeJson} and {@link resultOf} translate between values
 * and the JSON that travels. The generated messages are exported beside them.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { createClient as createConnectClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { retrying } from "./retry.js";
import { FabricService, Task_Status, type TaskError, type TaskResult } from "./gen/treadle/v1/fabric_pb.js";

export * from "./gen/treadle/v1/fabric_pb.js";
export { Code, ConnectError } from "@connectrpc/connect";
export { errorInfoOf, reasonOf, type ErrorInfo, type KnownReason, type Reason } from "./reason.js";

/** Where a client looks for a server unless told otherwise. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

/** Choices of {@link createClient}; all are optional. */
export interface ClientOptions {
  /** Secret that the server asks for. Default: the environment's TREADLE_TOKEN, if set. */
  token?: string;
  /**
   * File in PEM with the CA that signed the server's certificate, or "system" for what Node
   * trusts. Where it is set the client speaks TLS. Default: the environment's
   * TREADLE_TLS_CA, if set, else plain HTTP/2.
   */
  ca?: string;
  /** Speak TLS, trusting what Node trusts (true), or plain HTTP/2 (false). Default: `ca` decides. */
  tls?: boolean;
  /** Let a token travel without TLS to an address that is not loopback. Default: false. */
  insecure?: boolean;
  /**
   * Milliseconds after which a call without a deadline of its own is given up.
   * Default: none; a watch may last as long as its task.
   */
  timeoutMs?: number;
  /**
   * Milliseconds for which a call that is no stream is made again while no server answers. Each
   * has a request id, made where it has none, so nothing is recorded twice. Default: 30,000; 0 never.
   */
  retryMs?: number;
}

/**
 * Every method of FabricService, and the end of the connection. Methods reject with a
 * ConnectError, whose code is the gRPC status, and {@link reasonOf} tells the server's reason. While
 * no server answers they are made again, see retryMs; streams are not.
 */
export type FabricClient = Client<typeof FabricService> & Disposable & {
  /** Closes the connection; calls under way end as CANCELLED. Calling it twice is fine. */
  close(): void;
};

/**
 * Makes a client of the server at `address` ("host:port"; default: the environment's
 * TREADLE_ADDRESS, then {@link DEFAULT_ADDRESS}). It throws when the CA cannot be read, and
 * when a token would travel to another machine in plain text. It connects with the first call, again
 * after a lost connection, and carries any number of calls at once. Calls under way keep the Node
 * process alive, an idle connection does not: `close` ends both at once.
 */
export function createClient(address?: string, options: ClientOptions = {}): FabricClient {
  const target = address ?? process.env["TREADLE_ADDRESS"] ?? DEFAULT_ADDRESS;
  const token = options.token ?? process.env["TREADLE_TOKEN"]?.trim();
  const ca = options.tls === undefined ? (options.ca ?? process.env["TREADLE_TLS_CA"] ?? "") : (options.ca ?? "");
  const tls = options.tls ?? ca !== "";
  const baseUrl = `${tls ? "https" : "http"}://${target}`;

  let closed = false;
  const interceptors: Interceptor[] = [];
  if (token !== undefined && token !== "") {
    if (!tls && options.insecure !== true && !isLoopback(baseUrl)) {
      throw new TypeError(
        `the token would travel to ${target} without TLS, where others can read it: name the server's CA (ca, TREADLE_TLS_CA), ` +
          "or allow it with insecure",
      );
    }
    interceptors.push((next) => (request) => {
      request.header.set("authorization", `Bearer ${token}`);
      return next(request);
    });
  }
  const trusted = tls && ca !== "" && ca !== "system" ? { ca: readFileSync(ca) } : {};
  const sessionManager = new Http2SessionManager(baseUrl, { pingIntervalMs: 10_000, pingTimeoutMs: 5_000 }, { minVersion: "TLSv1.3", ...trusted });
  const isOpen = () => sessionManager.state() === "open" || sessionManager.state() === "idle";
  interceptors.unshift(retrying(target, options.retryMs ?? 30_000, () => closed, isOpen));
  const transport = createGrpcTransport({
    baseUrl,
    interceptors,
    sessionManager,
    ...(options.timeoutMs === undefined ? {} : { defaultTimeoutMs: options.timeoutMs }),
  });
  const close = () => {
    closed = true;
    sessionManager.abort();
  };
  return Object.assign(createConnectClient(FabricService, transport), { close, [Symbol.dispose]: close });
}

/** Whether a server cannot be on another machine. */
function isLoopback(baseUrl: string): boolean {
  const host = new URL(baseUrl).hostname;
  return host === "localhost" || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

/**
 * JSON text of a value, as the fields `args` (an array) and `kwargs` (an object) want it.
 * Throws a TypeError for what JSON cannot hold as a whole: undefined, a function, a
 * BigInt, a cycle.
 */
export function encodeJson(value: unknown): Uint8Array {
  const text = JSON.stringify(value) as string | undefined;
  if (text === undefined) {
    throw new TypeError(`${typeof value} has no JSON form`);
  }
  return new TextEncoder().encode(text);
}

/**
 * The value of a COMPLETED result.
 *
 * Throws a {@link TaskFailedError} when the task is FAILED, its {@link TaskCancelledError} when it is CANCELLED, and a
 * {@link NoJsonValueError} when it has no value that JSON can hold: it is unfinished,
 * was executed with pickled arguments, or returned such a thing. Integers beyond
 * Number.MAX_SAFE_INTEGER lose digits here, as everywhere in JavaScript; the field
 * `result` holds the exact text.
 *
 * @typeParam T - what the function returns; it is not checked
 */
export function resultOf<T = unknown>(result: TaskResult): T {
  if (result.status === Task_Status.CANCELLED) {
    throw new TaskCancelledError(result);
  }
  if (result.status === Task_Status.FAILED) {
    throw new TaskFailedError(result);
  }
  if (result.status !== Task_Status.COMPLETED || result.result === undefined) {
    throw new NoJsonValueError(result);
  }
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(result.result)) as T;
}

/** A task ended in FAILED or CANCELLED. */
export class TaskFailedError extends Error {
  override readonly name: string = "TaskFailedError";
  readonly taskId: string;
  readonly status: Task_Status;
  /** What the server recorded: class of the failure, exception, traceback. */
  readonly detail: TaskError | undefined;

  constructor(result: TaskResult) {
    const kind = result.error?.exceptionType || result.error?.errorType || Task_Status[result.status];
    super(`task ${result.taskId}: ${kind}: ${result.error?.message ?? ""}`);
    this.taskId = result.taskId;
    this.status = result.status;
    this.detail = result.error;
  }
}

/** A task was cancelled. */
export class TaskCancelledError extends TaskFailedError {
  override readonly name = "TaskCancelledError";
}

/** A result holds no JSON value: the task is unfinished, or its value is a pickle. */
export class NoJsonValueError extends Error {
  override readonly name = "NoJsonValueError";
  readonly taskId: string;
  readonly status: Task_Status;

  constructor(result: TaskResult) {
    const why =
      result.status === Task_Status.COMPLETED
        ? `its value is not JSON: ${result.resultRepr || "a pickle"}`
        : `it is ${Task_Status[result.status]}`;
    super(`task ${result.taskId} has no JSON result: ${why}`);
    this.taskId = result.taskId;
    this.status = result.status;
  }
}
