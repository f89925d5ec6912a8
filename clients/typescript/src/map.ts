import type { SubmitOptions } from "./client.js";
import type { Core } from "./core.js";
import { checkNames, described } from "./records.js";
import type { TaskHandle } from "./task.js";
import { limitsOf, TIMED_OUT, within } from "./waiting.js";
import { TaskUnfinishedError } from "./errors.js";

/** How many tasks of a map are under way unless told otherwise. */
const IN_FLIGHT = 1000;
/** What a server admits of one client's unfinished work is its quotas' matter; this bounds this process. */
const MOST_IN_FLIGHT = 100_000;

/** How a function is mapped over items; all is optional. */
export interface MapOptions extends Pick<SubmitOptions, "kwargs" | "options" | "signal"> {
  /** How many tasks are under way at most, 1 to 100,000. Default: 1000. */
  inFlight?: number;
  /** Each item is an array of the positional arguments, and not the one argument. Default: false. */
  spread?: boolean;
  /** Milliseconds for the whole before a TaskUnfinishedError. Default: as long as it takes. */
  waitMs?: number;
}

/** One item under way. */
interface Entry<T> {
  task: Promise<TaskHandle<T>>;
  value: Promise<T>;
  done: boolean;
}

/** What is under way, filled by a pump that reads the items and emptied in their order. */
class Window<T> {
  readonly entries: Entry<T>[] = [];
  /** All items were read, or reading them failed. */
  ended = false;
  failure: { error: unknown } | undefined;
  stopped = false;
  #changed = () => {};
  #news = new Promise<void>(() => {});

  constructor() {
    this.#renew();
  }

  /** Settles with the next change. */
  get news(): Promise<void> {
    return this.#news;
  }

  #renew(): void {
    this.#news = new Promise((resolve) => {
      this.#changed = resolve;
    });
  }

  tell(): void {
    this.#changed();
    this.#renew();
  }
}

/** See Client.map. */
export async function* mapped<T>(
  submit: (args: readonly unknown[], options: SubmitOptions) => Promise<TaskHandle<T>>,
  core: Core,
  items: Iterable<unknown> | AsyncIterable<unknown>,
  options: MapOptions,
): AsyncGenerator<T, void, undefined> {
  checkNames("options", options, ["kwargs", "options", "signal", "inFlight", "spread", "waitMs"]);
  const { inFlight = IN_FLIGHT, spread = false, waitMs, signal, ...choices } = options;
  if (!Number.isInteger(inFlight) || inFlight < 1 || inFlight > MOST_IN_FLIGHT) {
    throw new TypeError(`options.inFlight is ${described(inFlight)}: want an integer from 1 to ${String(MOST_IN_FLIGHT)}`);
  }
  const limits = limitsOf({ ...(waitMs !== undefined && { waitMs }), ...(signal && { signal }) });
  const iterator = iteratorOf(items);
  const window = new Window<T>();
  const start = (item: unknown): Entry<T> => {
    const task = submit(spread ? (item as unknown[]) : [item], choices);
    const entry: Entry<T> = { task, value: task.then((handle) => handle.result()), done: false };
    const over = () => {
      entry.done = true;
    };
    entry.value.then(over, over); // so that a value that nobody comes for is no unhandled rejection
    return entry;
  };
  void pump(iterator, window, inFlight, start);
  let taken = 0;
  try {
    for (;;) {
      const head = window.entries[0];
      if (head === undefined) {
        if (window.failure !== undefined) throw window.failure.error;
        if (window.ended) return;
      }
      const value = await within<unknown>(head === undefined ? window.news : head.value, limits);
      if (value === TIMED_OUT) {
        throw await late(head, taken, waitMs ?? 0);
      }
      if (head === undefined) continue;
      window.entries.shift();
      window.tell();
      taken++;
      yield value as T;
    }
  } finally {
    window.stopped = true;
    window.tell();
    await end(core, window, iterator);
  }
}

/** Reads items and starts their tasks as long as there is room. */
async function pump<T>(
  iterator: Iterator<unknown> | AsyncIterator<unknown>,
  window: Window<T>,
  inFlight: number,
  start: (item: unknown) => Entry<T>,
): Promise<void> {
  try {
    while (!window.stopped) {
      if (window.entries.length >= inFlight) {
        await window.news;
        continue;
      }
      const next = iterator.next();
      const item = next instanceof Promise ? await next : (next as IteratorResult<unknown>);
      if (item.done === true) break;
      if (window.stopped) return;
      window.entries.push(start(item.value));
      window.tell();
    }
  } catch (error) {
    window.failure = { error };
  } finally {
    window.ended = true;
    window.tell();
  }
}

/** Cancels what is under way and lets go of the items. */
async function end<T>(core: Core, window: Window<T>, iterator: Iterator<unknown> | AsyncIterator<unknown>): Promise<void> {
  const open = window.entries.filter((entry) => !entry.done);
  if (!window.ended) {
    // Not awaited: an iterator that waits for its next item answers only then.
    void Promise.resolve(iterator.return?.()).catch(() => undefined);
  }
  if (open.length > 0) {
    const ids = await within(Promise.allSettled(open.map((entry) => entry.task)), { end: performance.now() + 5_000 });
    if (ids !== TIMED_OUT) {
      await core.cancelAll(ids.flatMap((task) => (task.status === "fulfilled" ? [task.value.id] : [])));
    }
  }
}

async function late<T>(head: Entry<T> | undefined, taken: number, waitMs: number): Promise<Error> {
  const text = `the map is not finished after ${String(waitMs)} ms: ${String(taken)} values were taken`;
  if (head === undefined) {
    return new TaskUnfinishedError(`${text}, and the next item is not there`);
  }
  const handle = await within(head.task, { end: performance.now() }).catch(() => TIMED_OUT);
  if (typeof handle === "symbol") {
    return new TaskUnfinishedError(`${text}, and no server has answered for the next one`);
  }
  const status = await within(handle.status(), { end: performance.now() + 1_000 }).catch(() => TIMED_OUT);
  const known = typeof status === "symbol" ? undefined : status;
  return new TaskUnfinishedError(`${text}, and task ${handle.id} is ${known ?? "not finished"}; what is under way is cancelled`, handle.id, known);
}

function iteratorOf(items: unknown): Iterator<unknown> | AsyncIterator<unknown> {
  if (typeof items === "object" && items !== null) {
    if (Symbol.asyncIterator in items) return (items as AsyncIterable<unknown>)[Symbol.asyncIterator]();
    if (Symbol.iterator in items) return (items as Iterable<unknown>)[Symbol.iterator]();
  }
  throw new TypeError(`the items are ${described(items)}: want an array, or anything else that for (await) ranges over`);
}
