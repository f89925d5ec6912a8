import type { ClientHttp2Stream, ClientSessionRequestOptions, Http2Session, OutgoingHttpHeaders, SecureClientSessionOptions } from "node:http2";
import { Code, ConnectError } from "@connectrpc/connect";
import { Http2SessionManager } from "@connectrpc/connect-node";

/**
 * The header by which a call says how many milliseconds it waits for the first bytes of its answer. It does not
 * travel: the layer below calls has no other way to be told.
 */
export const PATIENCE_HEADER = "treadle-patience-ms";

/** The longest time that a connection may take to come about, TLS included, in milliseconds. The system's own limit is minutes. */
const CONNECT_MS = 10_000;

/**
 * How many bytes a stream, and a connection, may have on their way to this client. The 64 KiB of HTTP/2 make
 * a line of 40 ms there and back one of 1 MiB/s.
 */
const STREAM_WINDOW = 4 << 20;
const CONNECTION_WINDOW = 16 << 20;

// The server cuts off who pings more often than every 5 s.
const PINGS = { pingIntervalMs: 10_000, pingTimeoutMs: 5_000 };

/**
 * The connection of a client: one at a time, opened again after it was lost. When nothing answers a
 * call in its time the calls that follow go by a connection of their own, since what swallowed that call, a
 * proxy or a frozen process, may have more to swallow. Calls under way stay where they are.
 */
export class Sessions {
  readonly authority: string;
  readonly #options: SecureClientSessionOptions;
  readonly #connectMs: number;
  #current: Http2SessionManager;
  readonly #widened = new WeakSet<Http2Session>();
  /** Those that were left, for what is still under way on them. */
  readonly #left = new Set<Http2SessionManager>();

  /** `attemptMs` is how long one attempt of a call may take; a connection comes about in that time, or not at all. */
  constructor(baseUrl: string, options: SecureClientSessionOptions, attemptMs: number) {
    this.#options = { ...options, settings: { initialWindowSize: STREAM_WINDOW } };
    this.#connectMs = Math.min(CONNECT_MS, attemptMs);
    this.authority = baseUrl;
    this.#current = this.#open();
    this.authority = this.#current.authority;
  }

  #open(): Http2SessionManager {
    return new Http2SessionManager(this.authority, PINGS, this.#options);
  }

  /** Called by the transport for each call and stream. */
  async request(
    method: string,
    path: string,
    headers: OutgoingHttpHeaders,
    options: Omit<ClientSessionRequestOptions, "signal">,
  ): Promise<ClientHttp2Stream> {
    const { [PATIENCE_HEADER]: patience, ...rest } = headers;
    const session = this.#current;
    const connecting = setTimeout(() => {
      if (session.state() === "connecting") {
        session.abort(new ConnectError(`no connection within ${String(this.#connectMs / 1000)} s`, Code.Unavailable));
      }
    }, this.#connectMs);
    let stream: ClientHttp2Stream;
    try {
      stream = await session.request(method, path, rest, options);
    } finally {
      clearTimeout(connecting);
    }
    if (stream.session !== undefined && !this.#widened.has(stream.session)) {
      this.#widened.add(stream.session);
      stream.session.setLocalWindowSize(CONNECTION_WINDOW);
    }
    if (patience !== undefined) {
      this.#watch(session, stream, Number(patience));
    }
    return stream;
  }

  #watch(session: Http2SessionManager, stream: ClientHttp2Stream, patienceMs: number): void {
    const timer = setTimeout(() => {
      this.#leave(session);
      stream.destroy(new ConnectError(`nothing has answered within ${String(Math.round(patienceMs / 100) / 10)} s`, Code.Unavailable));
    }, patienceMs);
    const done = () => {
      clearTimeout(timer);
    };
    stream.once("response", done);
    stream.once("close", done);
  }

  #leave(session: Http2SessionManager): void {
    if (session === this.#current) {
      this.#left.add(session);
      this.#current = this.#open();
    }
    for (const old of this.#left) {
      // The manager closes a connection that is idle for 15 minutes, and an idle one keeps no process alive.
      if (old.state() === "closed" || old.state() === "error") {
        this.#left.delete(old);
      }
    }
  }

  /** Called by the transport: what was read shows that a connection lives. */
  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    for (const session of [this.#current, ...this.#left]) {
      session.notifyResponseByteRead(stream);
    }
  }

  /** Whether a connection is there, as far as is known. */
  isOpen(): boolean {
    return ["open", "idle"].includes(this.#current.state());
  }

  /** Ends the connection, and what is under way on it. */
  abort(): void {
    for (const session of [this.#current, ...this.#left]) {
      session.abort();
    }
    this.#left.clear();
  }
}
