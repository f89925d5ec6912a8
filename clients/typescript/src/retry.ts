import { randomUUID } from "node:crypto";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { create, isMessage } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { reasonOf } from "./reason.js";
import { CallInputSchema, CallRequestSchema, ExecuteBatchRequestSchema, ExecuteRequestSchema, RegisterFunctionRequestSchema } from "./gen/treadle/v1/fabric_pb.js";

/** Pauses between tries, in milliseconds: the first, and the longest. */
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 1000;

/**
 * Makes a unary call again while no server answers, for `totalMs` in all or until its own
 * deadline or signal ends it. The request stays the same, its request id included, so what was
 * recorded by a call whose answer was lost is found and not recorded twice. Streams are not
 * made again. Until a server has answered once, what no waiting will mend is told at once.
 */
export function retrying(target: string, totalMs: number, isClosed: () => boolean, isOpen: () => boolean): Interceptor {
  let met = false;
  return (next) => async (request) => {
    if (!request.stream) {
      nameRequests(request.message);
    }
    const end = performance.now() + totalMs;
    for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 1.6, LONGEST_PAUSE)) {
      try {
        const response = await next(request);
        met = true;
        return response;
      } catch (reason) {
        const error = ConnectError.from(reason);
        // A session that fails tells its streams first, and its manager some turns later: closed in
        // between, it would throw its error at the process.
        for (let turns = 0; nodeCode(error) === "ERR_HTTP2_ERROR" && isOpen() && turns < 1000; turns++) {
          await turn();
        }
        const why = met || reasonOf(error) !== undefined ? "" : hopeless(error);
        if (why !== "") {
          throw new ConnectError(`at ${target}: ${why}`, Code.Unavailable, undefined, undefined, error);
        }
        met ||= reasonOf(error) !== undefined;
        const wait = pause * (0.7 + 0.6 * Math.random());
        if (request.stream || request.signal.aborted || isClosed() || !mayPass(error) || performance.now() + wait > end) {
          throw error;
        }
        await sleep(wait, undefined, { signal: request.signal });
      }
    }
  };
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

/** Whether a call may succeed when it is made again: no server answered, or not to the end. */
function mayPass(error: ConnectError): boolean {
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
  if (code === "ERR_HTTP2_ERROR" && error.rawMessage.includes("Protocol error")) {
    return "an HTTP server answers there, and no gRPC one: 8000 is the REST port; gRPC is 50051";
  }
  if (code === "ERR_SSL_WRONG_VERSION_NUMBER") {
    return "the server speaks plain text and this client TLS: leave the CA (ca, TREADLE_TLS_CA) out, or start the server with --tls-cert and --tls-key";
  }
  if (/^(UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|CERT_|ERR_TLS_CERT_)/.test(code)) {
    return `its certificate is refused (${error.rawMessage}): check the CA (ca, TREADLE_TLS_CA), and the name or address that is dialled`;
  }
  return "";
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
