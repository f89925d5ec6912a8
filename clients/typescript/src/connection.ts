import { readFileSync } from "node:fs";
import { createClient as createConnectClient, type Client as ConnectClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { checkAddress, checkToken, DEFAULT_PORT, isLoopback } from "./address.js";
import { checkNames, described } from "./records.js";
import { retrying } from "./retry.js";
import { Sessions } from "./sessions.js";
import { FabricService } from "./gen/treadle/v1/fabric_pb.js";

/** Where a client looks for a server unless told otherwise. */
export const DEFAULT_ADDRESS = `127.0.0.1:${String(DEFAULT_PORT)}`;

/** Choices of createClient; all are optional. */
export interface ClientOptions {
  /** Secret that the server asks for. Default: the environment's TREADLE_TOKEN; "" sends none. */
  token?: string;
  /**
   * File in PEM with the CA that signed the server's certificate, or "system" for what Node
   * trusts. Where it is set the client speaks TLS. Default: the environment's
   * TREADLE_TLS_CA, if set, else plain HTTP/2.
   */
  ca?: string;
  /** File in PEM with this client's certificate, for servers that want one; `key` is given with it. */
  cert?: string;
  /** File in PEM with the private key of `cert`. */
  key?: string;
  /** Speak TLS, trusting `ca` or else what Node trusts (true), or plain HTTP/2 (false). Default: `ca` decides. */
  tls?: boolean;
  /** Let a token travel without TLS to an address that is not loopback. Default: false. */
  insecure?: boolean;
  /**
   * Milliseconds for which a call is made again while no server answers. Each has a request id, so nothing is
   * recorded twice. It does not limit how long a task may take. Default: 30,000; 0 never makes one again.
   */
  retryMs?: number;
  /**
   * Milliseconds that one attempt of a call waits for an answer (and one more second for each MiB that it sends,
   * and as long as the server was asked to wait) before it is made again by a connection of its own. Default: 15,000.
   */
  attemptMs?: number;
}

/** Every method of FabricService as it is on the wire, see `@treadle/client/rpc`. */
export type Rpc = ConnectClient<typeof FabricService>;

/** A connection to a server: the methods, and what ends them. */
export interface Connection {
  readonly address: string;
  readonly rpc: Rpc;
  readonly retryMs: number;
  isClosed(): boolean;
  close(): void;
}

/** Checks everything that can be checked without a server; throws a TypeError where something can never be right. */
export function connectionTo(address: string | undefined, options: ClientOptions): Connection {
  checkNames("options", options, ["token", "ca", "cert", "key", "tls", "insecure", "retryMs", "attemptMs"]);
  const checked = checkAddress(address ?? (process.env["TREADLE_ADDRESS"] || DEFAULT_ADDRESS));
  const retryMs = milliseconds("retryMs", options.retryMs, 30_000, 0);
  const attemptMs = milliseconds("attemptMs", options.attemptMs, 15_000, 1);
  const { tls, secure } = security(options);

  let closed = false;
  const isClosed = () => closed;
  const baseUrl = `${tls ? "https" : "http"}://${checked}`;
  const sessions = new Sessions(baseUrl, secure, attemptMs);
  const interceptors: Interceptor[] = [retrying({ address: checked, totalMs: retryMs, attemptMs, isClosed, isOpen: () => sessions.isOpen() })];
  const token = options.token ?? process.env["TREADLE_TOKEN"]?.trim() ?? "";
  if (token !== "") {
    checkToken(token);
    if (!tls && options.insecure !== true && !isLoopback(checked)) {
      throw new TypeError(
        `the token would travel to ${checked} without TLS, where others can read it: name the server's CA (ca, TREADLE_TLS_CA), ` +
          "or allow it with insecure",
      );
    }
    interceptors.push((next) => (request) => {
      request.header.set("authorization", `Bearer ${token}`);
      return next(request);
    });
  }
  const transport = createGrpcTransport({ baseUrl, interceptors, sessionManager: sessions });
  return {
    address: checked,
    rpc: createConnectClient(FabricService, transport),
    retryMs,
    isClosed,
    close: () => {
      closed = true;
      sessions.abort();
    },
  };
}

function milliseconds(name: string, value: number | undefined, otherwise: number, least: number): number {
  if (value !== undefined && !(typeof value === "number" && value >= least && value <= 0x7fffffff)) {
    throw new TypeError(`options.${name} is ${described(value)}: want milliseconds, from ${String(least)} to 2147483647`);
  }
  return value ?? otherwise;
}

/** Whether TLS is spoken, and how. */
function security(options: ClientOptions): { tls: boolean; secure: { minVersion: "TLSv1.3"; ca?: string; cert?: string; key?: string } } {
  const ca = options.ca ?? (options.tls === undefined ? process.env["TREADLE_TLS_CA"] : undefined) ?? "";
  const tls = options.tls ?? ca !== "";
  const { cert, key } = options;
  if ((cert === undefined) !== (key === undefined)) {
    throw new TypeError(`options.${cert === undefined ? "key" : "cert"} is there without the other one: want both cert and key, or neither`);
  }
  if (cert !== undefined && !tls) {
    throw new TypeError("options.cert is there without TLS: name the server's CA (ca, TREADLE_TLS_CA), or set tls");
  }
  return {
    tls,
    secure: {
      minVersion: "TLSv1.3",
      ...(tls && ca !== "" && ca !== "system" && { ca: pem("the CA (ca, TREADLE_TLS_CA)", ca, "CERTIFICATE") }),
      ...(cert !== undefined && key !== undefined && { cert: pem("the certificate (cert)", cert, "CERTIFICATE"), key: pem("the key (key)", key, "PRIVATE KEY") }),
    },
  };
}

function pem(what: string, file: string, holds: string): string {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new TypeError(`${what}: ${String(error instanceof Error ? error.message : error)}`, { cause: error });
  }
  if (!new RegExp(`-----BEGIN ([A-Z]+ )*${holds}-----`).test(text)) {
    throw new TypeError(`${what}: there is no ${holds.toLowerCase()} in PEM in ${file}`);
  }
  return text;
}
