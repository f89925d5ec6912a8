/**
 * TypeScript client of Treadle: register a function once, execute it by id any
 * number of times, watch its tasks and fetch their results.
 *
 * @module
 */
import { Client } from "./client.js";
import { connectionTo, type ClientOptions } from "./connection.js";
import { Core } from "./core.js";

export type { Client, CallOptions, FunctionLike, Registration, ServerInfo, SubmitOptions } from "./client.js";
export { DEFAULT_ADDRESS, type ClientOptions, type Rpc } from "./connection.js";
export { DEFAULT_PORT } from "./address.js";
export { ClientClosedError, NoJsonValueError, TaskCancelledError, TaskFailedError, TaskUnfinishedError, type Failure } from "./errors.js";
export type { MapOptions } from "./map.js";
export { errorInfoOf, KNOWN_REASONS, reasonOf, type ErrorInfo, type KnownReason, type Reason } from "./reason.js";
export type { Attempt, RegisteredFunction, Result, Status, TaskOptions, TaskRecord } from "./records.js";
export type { TaskHandle, WaitOptions } from "./task.js";
export { Code, ConnectError } from "@connectrpc/connect";

/**
 * Makes a client of the server at `address`: "host:port", or a host alone for port 50051. Default: the environment's
 * TREADLE_ADDRESS, then 127.0.0.1:50051. It does not connect: the first call does. Throws a TypeError for what can
 * never be right: a malformed address, a file that cannot be read, a token that would travel to another machine in
 * plain text.
 *
 * Until a server has answered once, calls fail at once where waiting is no help: nothing listens, a certificate that
 * the CA did not sign, the port of REST, no such host. Later they are made again for `retryMs`, as servers restart.
 */
export function createClient(address?: string, options: ClientOptions = {}): Client {
  return new Client(new Core(connectionTo(address, options)));
}
