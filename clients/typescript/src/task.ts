import type { Core } from "./core.js";
import { checkNames, type Result, type Status, type TaskRecord } from "./records.js";
import { limitsOf } from "./waiting.js";

/** How a task is waited for. */
export interface WaitOptions {
  /** Milliseconds to wait before a TaskUnfinishedError; 0 asks once. Default: as long as it takes. */
  waitMs?: number;
  /** Ends the wait: the promise rejects with its reason. The task goes on unless `cancelOnAbort`. */
  signal?: AbortSignal;
  /** Cancel the task when the signal aborts; the promise rejects when the server has answered, at most 5 s later. Default: false. */
  cancelOnAbort?: boolean;
}

/** A recorded task. */
export class TaskHandle<T = unknown> {
  readonly id: string;
  /** The function as it was submitted; "" where that is not known. @internal */
  readonly name: string;
  readonly #core: Core;

  /** Use Client.submit or Client.task. */
  constructor(core: Core, id: string, name: string) {
    this.#core = core;
    this.id = id;
    this.name = name;
  }

  /**
   * Waits for the task and gives its value. Rejects with a TaskFailedError, its TaskCancelledError, a
   * TaskUnfinishedError, or a NoJsonValueError.
   */
  async result(options: WaitOptions = {}): Promise<T> {
    return (await this.wait(options)).value();
  }

  /** Waits for the task and tells how it ended: one that failed is no error here. */
  async wait(options: WaitOptions = {}): Promise<Result<T>> {
    checkNames("options", options, ["waitMs", "signal", "cancelOnAbort"]);
    return this.#core.finished<T>(this.id, limitsOf(options), options.cancelOnAbort, this.name);
  }

  /** The task's status, asked of the server. */
  async status(): Promise<Status> {
    return (await this.record()).status;
  }

  /** The task's record: status, times, attempts, error. */
  record(): Promise<TaskRecord> {
    return this.#core.record(this.id);
  }

  /**
   * The task's record: now and after each change of its status, until it is finished. A status that lasted only a
   * moment may be left out.
   */
  watch(): AsyncGenerator<TaskRecord, void, undefined> {
    return this.#core.watch(this.id);
  }

  /** What an attempt printed, its last 64 KiB. Default: the latest attempt. */
  logs(attempt = 0): Promise<string> {
    return this.#core.logs(this.id, attempt);
  }

  /**
   * Cancels the task, also while it runs; with `onlyQueued` not once it has started. Gives whether it is cancelled
   * now: false when it had finished before, or goes on.
   */
  async cancel(options: { onlyQueued?: boolean } = {}): Promise<boolean> {
    checkNames("options", options, ["onlyQueued"]);
    return (await this.#core.cancel(this.id, options.onlyQueued === true)) === "CANCELLED";
  }

  /** Its id, so that a handle in a log or in JSON says which task it is. */
  toJSON(): string {
    return this.id;
  }
}
