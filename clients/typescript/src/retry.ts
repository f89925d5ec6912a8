import { randomUUID } from "node:crypto";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { create, isMessage } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { reasonOf } from "./reason.js";
import { PATIENCE_HEADER } from "./sessions.js";
import {
  CallInputSchema,
  CallRequestSchema,
  ExecuteBatchRequestSchema,
  ExecuteRequestSchema,
  GetResultRequestSchema,
  RegisterFunctionRequestSchema,
} from "./gen/treadle/v1/fabric_pb.js";

/** Pauses between tries, in milliseconds: the first, and the longest. */
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 1000;

/** A slow line gets this many milliseconds for a mebibyte, beyond every limit. */
const MS_PER_MIB = 1000;

/** How long a server lets a Call without a timeout wait, in milliseconds. */
const SERVER_CALL_MS = 30_000;

/** What {@link retrying} is told. */
export interface Retries {
  /** Where the server is, for errors. */
  address: string;
  /** Milliseconds for which a call is made again while no server answers. */
  totalMs: number;
  /** Milliseconds that one attempt waits for an answer, beyond what the server was asked to wait. */
  attemptMs: number;
  isClosed(): boolean;
  /** Whether the connection is there, as far as is known. */
  isOpen(): boolean;
}

/** Pauses between tries in milliseconds, spread out. */
export function* pauses(): Generator<number, never> {
  for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 1.6, LONGEST_PAUSE)) {
    yield pause * (0.7 + 0.6 * Math.random());
  }
}

/**
 * Makes a unary call again while no server answers, for `totalMs` in all or until its own
 * deadline or signal ends it. The request stays the same, its request id included, so what was
 * recorded by a call whose answer was lost is found and not recorded twice. Streams are not
 * made again. Until a server has answered once, what no waiting will mend is told at once.
 */
export function retrying(retries: Retries): Interceptor {
  const { address, totalMs } = retries;
  let met = false;
  return (next) => async (request) => {
    if (retries.isClosed()) {
      throw new ConnectError("the client is closed", Code.Canceled);
    }
    // Room for what the request weighs, and for what the server was asked to wait.
    let allowance = 0;
    if (!request.stream) {
      nameRequests(request.message);
      allowance = (weight(request.message) / (1 << 20)) * MS_PER_MIB;
      request.header.set(PATIENCE_HEADER, String(Math.ceil(retries.attemptMs + allowance + serverWait(request.message))));
    }
    // From the first failure on: a server that waited for a task was there until then.
    let end: number | undefined;
    for (const pause of pauses()) {
      try {
        const response = await next(request);
        met = true;
        return response;
      } catch (reason) {
        const error = ConnectError.from(reason);
        // A session that fails tells its streams first, and its manager some turns later: closed in
        // between, it would throw its error at the process.
        for (let turns = 0; nodeCode(error) === "ERR_HTTP2_ERROR" && retries.isOpen() && turns < 1000; turns++) {
          await turn();
        }
        const why = met || reasonOf(error) !== undefined ? "" : hopeless(error);
        if (why !== "") {
          throw new ConnectError(`at ${address}: ${why}`, Code.Unavailable, undefined, undefined, error);
        }
        met ||= reasonOf(error) !== undefined;
        if (request.signal.aborted || retries.isClosed() || !mayPass(error)) {
          throw error;
        }
        if (request.stream || totalMs === 0) {
          throw lost(address, error);
        }
        const now = performance.now();
        end ??= now + totalMs + allowance;
        if (now + pause > end) {
          throw unanswered(address, totalMs, error);
        }
        await sleep(pause, undefined, { signal: request.signal });
      }
    }
    throw new ConnectError("unreachable", Code.Internal); // pauses never end
  };
}

/** What to tell of an error that may pass, and was not waited for: what the transport says of a broken connection is no code of the server's. */
export function lost(address: string, error: ConnectError): ConnectError {
  if (reasonOf(error) !== undefined || error.code === Code.Unavailable) {
    return error;
  }
  return new ConnectError(`the connection to ${address} broke: ${error.rawMessage}`, Code.Unavailable, undefined, undefined, error);
}

/** What to tell when an error that may pass did not pass in time. */
export function unanswered(address: string, totalMs: number, error: ConnectError): ConnectError {
  if (reasonOf(error) !== undefined) {
    return error;
  }
  const message = `no server answered at ${address} within ${String(totalMs / 1000)} s: ${error.rawMessage}`;
  return new ConnectError(message, Code.Unavailable, undefined, undefined, error);
}

/** Gives a request that records something an id of its own where it has none. */
function nameRequests(message: unknown): void {
  if (isMessage(message, ExecuteRequestSchema) || isMessage(message, RegisterFunctionRequestSchema)) {
    message.requestId ||= randomUUID();
  } else if (isMessage(message, ExecuteBatchRequestSchema)) {
    message.requests.forEach(nameRequests);
  } else if (isMessage(message, CallRequestSchema)) {
    message.input ??= create(CallInputSchema);
    message.input.requestId ||= randomUUID();
  }
}

/** Bytes of a request, near enough: those of its large fields. */
export function weight(message: unknown): number {
  if (isMessage(message, ExecuteRequestSchema)) {
    return message.args.length + message.kwargs.length + message.payload.length;
  }
  if (isMessage(message, ExecuteBatchRequestSchema)) {
    return message.requests.reduce((sum, request) => sum + weight(request), 0);
  }
  if (isMessage(message, CallRequestSchema)) {
    return (message.input?.args.length ?? 0) + (message.input?.kwargs.length ?? 0);
  }
  if (isMessage(message, RegisterFunctionRequestSchema)) {
    return message.payload.length + message.source.length;
  }
  return 0;
}

/** How long the server was asked to wait before it answers, in milliseconds. */
function serverWait(message: unknown): number {
  if (isMessage(message, CallRequestSchema)) {
    return message.timeout === undefined ? SERVER_CALL_MS : durationMs(message.timeout);
  }
  return isMessage(message, GetResultRequestSchema) && message.wait !== undefined ? durationMs(message.wait) : 0;
}

/** Whether a call may succeed when it is made again: no server answered, or not to the end. */
export function mayPass(error: ConnectError): boolean {
  if (error.code === Code.Unavailable) {
    return true;
  }
  // What the transport makes of a connection that broke: a stream that ended (nobody here has
  // cancelled it, which the caller has looked at), or an error of Node.
  return reasonOf(error) === undefined && (error.code === Code.Canceled || (nodeCode(error) !== "" && (error.code === Code.Aborted || error.code === Code.Internal)));
}

/** Why no waiting will help; "" where it may. */
function hopeless(error: ConnectError): string {
  const code = nodeCode(error);
  if (code === "ENOTFOUND") {
    return `there is no host of that name (${error.rawMessage})`;
  }
  if (isRefused(error)) {
    return "nothing listens there (connection refused): start a server, for example with 'treadle up', or name another address (TREADLE_ADDRESS)";
  }
  if (code === "ERR_HTTP2_ERROR" && error.rawMessage.includes("Protocol error")) {
    return "an HTTP server answers there, and no gRPC one: 8000 is the REST port; gRPC is 50051";
  }
  if (code === "ERR_SSL_WRONG_VERSION_NUMBER" || code === "ERR_SSL_PACKET_LENGTH_TOO_LONG") {
    return "the server speaks plain text and this client TLS: leave the CA (ca, TREADLE_TLS_CA) out, or start the server with --tls-cert and --tls-key";
  }
  if (/^ERR_SSL_.*ALERT_(CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA|CERTIFICATE_UNKNOWN|CERTIFICATE_EXPIRED|CERTIFICATE_REVOKED)$/.test(code)) {
    // OpenSSL's own text has addresses and source lines.
    const alert = code.slice("ERR_SSL_".length).toLowerCase().replaceAll("_", " ");
    return `it refuses this client's certificate, or wants one (${alert}): give one that its CA signed (cert, key)`;
  }
  if (/^(UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|CERT_|ERR_TLS_CERT_)/.test(code)) {
    return `its certificate is refused (${error.rawMessage}): check the CA (ca, TREADLE_TLS_CA), and the name or address that is dialled`;
  }
  return "";
}

/** Whether machines answer that nothing listens at any address of the host; silence may be a slow network. */
function isRefused(error: unknown): boolean {
  for (let e = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if (e instanceof AggregateError) {
      const codes = e.errors.map(nodeCode);
      // "localhost" is an IPv6 address, too, on machines without IPv6.
      return codes.includes("ECONNREFUSED") && codes.every((code) => /^(ECONNREFUSED|EADDRNOTAVAIL|EAFNOSUPPORT|ENETUNREACH)$/.test(code));
    }
    if ("code" in e && typeof e.code === "string") {
      return e.code === "ECONNREFUSED";
    }
  }
  return false;
}

/** The code of the Node error that an error stems from, "" without one. */
function nodeCode(error: unknown): string {
  for (let e = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if ("code" in e && typeof e.code === "string") {
      return e.code;
    }
  }
  return "";
}
