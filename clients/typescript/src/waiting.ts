import { described } from "./records.js";

/** What {@link within} gives when the time is over. */
export const TIMED_OUT = Symbol("timed out");

/** The longest time that a timer takes, in milliseconds: 24.8 days. */
const LONGEST = 0x7fffffff;

/** Limits of a wait. */
export interface Limits {
  /** The moment, as performance.now() tells it, at which it is given up. */
  end?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Reads the limits that people give. Throws a TypeError, or the reason of a signal that is aborted. */
export function limitsOf(options: { waitMs?: number; signal?: AbortSignal }): Limits {
  const { waitMs, signal } = options;
  if (waitMs !== undefined && !(typeof waitMs === "number" && waitMs >= 0)) {
    throw new TypeError(`options.waitMs is ${described(waitMs)}: want milliseconds, 0 or more`);
  }
  if (signal !== undefined && !((signal as unknown) instanceof AbortSignal)) {
    throw new TypeError(`options.signal is ${described(signal)}: want an AbortSignal`);
  }
  signal?.throwIfAborted();
  return { end: waitMs === undefined || waitMs === Infinity ? undefined : performance.now() + waitMs, signal };
}

/**
 * Waits for work until its limits: gives {@link TIMED_OUT} when the time is over, and rejects with the signal's
 * reason when that is aborted. The work itself goes on; its error is then nobody's.
 */
export async function within<T>(work: Promise<T>, limits: Limits): Promise<T | typeof TIMED_OUT> {
  const { end, signal } = limits;
  if (end === undefined && signal === undefined) {
    return work;
  }
  let timer: NodeJS.Timeout | undefined;
  let onAbort: (() => void) | undefined;
  try {
    return await new Promise<T | typeof TIMED_OUT>((resolve, reject) => {
      work.then(resolve, reject);
      if (signal !== undefined) {
        onAbort = () => {
          reject(signal.reason as Error);
        };
        if (signal.aborted) {
          onAbort();
          return;
        }
        signal.addEventListener("abort", onAbort, { once: true });
      }
      if (end !== undefined) {
        timer = setTimeout(resolve, Math.min(Math.max(end - performance.now(), 0), LONGEST), TIMED_OUT);
      }
    });
  } finally {
    clearTimeout(timer);
    if (onAbort !== undefined) {
      signal?.removeEventListener("abort", onAbort);
    }
  }
}
