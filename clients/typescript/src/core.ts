import { equals } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { Awaiter, type Waiter } from "./awaiter.js";
import { Batcher } from "./batcher.js";
import type { Connection } from "./connection.js";
import { ClientClosedError, TaskUnfinishedError } from "./errors.js";
import { isFinal, Result, statusOf, taskOf, type Status, type TaskRecord } from "./records.js";
import { Outage } from "./outage.js";
import { TaskHandle } from "./task.js";
import { TIMED_OUT, within, type Limits } from "./waiting.js";
import { TaskSchema, type ExecuteRequest, type Task } from "./gen/treadle/v1/fabric_pb.js";

/** How long a cancellation holds up the end of a wait, in milliseconds. */
const CANCEL_MS = 5_000;
/** How long it is asked how far a task is, whose wait has ended, in milliseconds. */
const GLANCE_MS = 1_000;
/** How many cancellations are under way at once. */
const CANCEL_WINDOW = 100;
/** What a client and the handles that it gave share: its connection, and what waits on it. */
export class Core {
  readonly connection: Connection;
  readonly awaiter: Awaiter;
  readonly #batcher: Batcher;

  constructor(connection: Connection) {
    this.connection = connection;
    this.#batcher = new Batcher((request) => connection.rpc.executeBatch(request));
    this.awaiter = new Awaiter(connection);
  }

  /** Records one task; its handle. */
  async submit<T>(request: ExecuteRequest, name: string, limits: Limits, cancelOnAbort: boolean | undefined): Promise<TaskHandle<T>> {
    if (this.connection.isClosed()) {
      throw new ClientClosedError();
    }
    const recorded = this.ask(this.#batcher.submit(request));
    let id: string | typeof TIMED_OUT;
    try {
      id = await within(recorded, limits);
    } catch (error) {
      if (limits.signal?.aborted === true && cancelOnAbort === true) {
        // Only once it is recorded can it be cancelled.
        await within(recorded.then((late) => this.cancelAll([late])).catch(() => undefined), { end: performance.now() + CANCEL_MS });
      }
      throw error;
    }
    if (id === TIMED_OUT) {
      throw unrecorded(name);
    }
    return new TaskHandle<T>(this, id, name);
  }

  /** How a task ended, waited for up to the limits. `name` is what people know the function by. */
  async finished<T>(id: string, limits: Limits, cancelOnAbort: boolean | undefined, name: string): Promise<Result<T>> {
    if (limits.end !== undefined && limits.end <= performance.now()) {
      // A poll, which needs no stream.
      const result = new Result<T>(await this.ask(this.connection.rpc.getResult({ taskId: id })));
      if (isFinal(result.status)) return result;
      throw unfinished(id, name, `is ${result.status}`, result.status);
    }
    let waiter: Waiter | undefined;
    const delivered = new Promise<Result<T>>((resolve, reject) => {
      waiter = {
        id,
        done: (m) => {
          resolve(new Result<T>(m));
        },
        failed: reject,
      };
      this.awaiter.add(waiter);
    });
    try {
      const result = await this.ask(within(delivered, limits));
      if (result === TIMED_OUT) {
        throw await this.unfinished(id, name, "");
      }
      return result;
    } catch (error) {
      if (limits.signal?.aborted === true && cancelOnAbort === true) {
        await this.cancelAll([id]);
      }
      throw error;
    } finally {
      if (waiter !== undefined) this.awaiter.leave(waiter);
    }
  }

  /** Why there is nothing yet, as far as that can be had in a moment. */
  async unfinished(id: string, name: string, more: string): Promise<TaskUnfinishedError> {
    try {
      const task = taskOf(await this.connection.rpc.getTask({ taskId: id }, { timeoutMs: GLANCE_MS }));
      const where = task.status === "QUEUED" ? ` in the queue ${JSON.stringify(task.queue)}` : "";
      return unfinished(id, task.functionName, `is ${task.status}${where}${more}`, task.status);
    } catch {
      return unfinished(id, name, `is not finished${more}; no server says how far it is`);
    }
  }

  /** A task's record. */
  async record(id: string): Promise<TaskRecord> {
    return taskOf(await this.ask(this.connection.rpc.getTask({ taskId: id })));
  }

  /** A task's records, until it is finished; the stream is opened again after a connection was lost. */
  async *watch(id: string): AsyncGenerator<TaskRecord, void, undefined> {
    let last: Task | undefined;
    const outage = new Outage(this.connection);
    const ended = new AbortController();
    try {
      for (;;) {
        outage.begin();
        try {
          for await (const task of this.connection.rpc.watchTask({ taskId: id }, { signal: ended.signal })) {
            outage.over();
            // A stream that was opened again starts with what may be known already.
            if (last !== undefined && equals(TaskSchema, task, last)) continue;
            last = task;
            yield taskOf(task);
            if (isFinal(statusOf(task.status))) return;
          }
          throw new ConnectError("the stream ended before the task did", Code.Unavailable);
        } catch (error) {
          if (!(error instanceof ConnectError) || this.connection.isClosed()) throw this.translated(error);
          await outage.survive(error);
        }
      }
    } finally {
      ended.abort();
    }
  }

  /** What an attempt printed; 0 is the latest one. */
  async logs(id: string, attempt: number): Promise<string> {
    return (await this.ask(this.connection.rpc.getLogs({ taskId: id, attempt }))).text;
  }

  /** Cancels a task; its status afterwards. */
  async cancel(id: string, onlyQueued: boolean): Promise<Status> {
    return statusOf((await this.ask(this.connection.rpc.cancelTask({ taskId: id, onlyQueued }))).status);
  }

  /** Cancels tasks as far as that is possible within a moment; rejects never. */
  async cancelAll(ids: Iterable<string>): Promise<void> {
    const left = [...ids];
    const end = performance.now() + CANCEL_MS;
    const some = async () => {
      for (let id = left.pop(); id !== undefined && !this.connection.isClosed(); id = left.pop()) {
        const timeoutMs = Math.ceil(end - performance.now());
        if (timeoutMs <= 0) return;
        await this.connection.rpc.cancelTask({ taskId: id }, { timeoutMs }).catch(() => undefined);
      }
    };
    await Promise.all(Array.from({ length: Math.min(left.length, CANCEL_WINDOW) }, some));
  }

  /** Waits for an answer; its errors are in the words of this package. */
  async ask<T>(answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw this.translated(error);
    }
  }

  /** An error of a call, as programs get it. */
  translated(error: unknown): unknown {
    return this.connection.isClosed() && error instanceof ConnectError ? new ClientClosedError() : error;
  }
}

/** The error of a wait whose task is known. */
function unfinished(id: string, name: string, state: string, status?: Status): TaskUnfinishedError {
  const of = name === "" ? "" : ` of ${JSON.stringify(name)}`;
  return new TaskUnfinishedError(`task ${id}${of} ${state}; it goes on, and client.task("${id}") waits for it anew`, id, status);
}

/** The error of a wait that ended before its task was recorded, as far as is known. */
export function unrecorded(name: string): TaskUnfinishedError {
  return new TaskUnfinishedError(`the task of ${JSON.stringify(name)} is not recorded yet, as far as is known: no server has answered`);
}
