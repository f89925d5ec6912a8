import { setTimeout as sleep } from "node:timers/promises";
import type { ConnectError } from "@connectrpc/connect";
import { lost, mayPass, pauses, unanswered } from "./retry.js";

/**
 * A stream that lasted this many milliseconds had a server at its other end: without one it ends after 25 s at the
 * latest, 10 to connect and 15 until a ping is missed.
 */
const LIVED_MS = 30_000;

/** How long a stream has been without a server, and whether it is opened once more. */
export class Outage {
  readonly #where: { readonly address: string; readonly retryMs: number };
  #pauses = pauses();
  /** Its first failure; undefined while there is none. Not the start of the stream, which is silent for as long as tasks run. */
  #since: number | undefined;
  #begun = performance.now();

  /** A stream is opened again for `retryMs` while no server answers. */
  constructor(where: { readonly address: string; readonly retryMs: number }) {
    this.#where = where;
  }

  /** The stream is opened. */
  begin(): void {
    this.#begun = performance.now();
  }

  /** Something came. */
  over(): void {
    this.#pauses = pauses();
    this.#since = undefined;
  }

  /** The stream has ended in an error: waits a moment, or throws what is to be told. */
  async survive(error: ConnectError): Promise<void> {
    if (!mayPass(error)) {
      throw error;
    }
    const now = performance.now();
    if (now - this.#begun > LIVED_MS) {
      this.over();
    }
    this.#since ??= now;
    const { address, retryMs } = this.#where;
    if (now - this.#since >= retryMs) {
      throw retryMs === 0 ? lost(address, error) : unanswered(address, retryMs, error);
    }
    await sleep(this.#pauses.next().value);
  }
}
