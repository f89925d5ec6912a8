/// <reference lib="esnext.disposable" preserve="true" />
import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import type { Waiter } from "./awaiter.js";
import type { Rpc } from "./connection.js";
import { unrecorded, type Core } from "./core.js";
import { toJson } from "./json.js";
import { mapped, type MapOptions } from "./map.js";
import { checkNames, described, functionOf, isFinal, optionsMessage, Result, taskOf, type RegisteredFunction, type TaskOptions, type TaskRecord } from "./records.js";
import { TaskHandle, type WaitOptions } from "./task.js";
import { limitsOf, TIMED_OUT, within, type Limits } from "./waiting.js";
import { CallRequestSchema, CallInputSchema, ExecuteRequestSchema, type ExecuteRequest } from "./gen/treadle/v1/fabric_pb.js";

/** A function: what `register` gave, an id, or a name, which means its newest registration. */
export type FunctionLike = string | { readonly id: string };

/** How a function is executed; all is optional. */
export interface SubmitOptions {
  /** Keyword arguments. */
  kwargs?: Readonly<Record<string, unknown>>;
  /** Choices of the task. */
  options?: TaskOptions;
  /**
   * Makes a repeated call find the task that the first one recorded; any text of at most 128 bytes. Default: a new one
   * for each call, which is kept while it is made again.
   */
  requestId?: string;
  /** Ends the wait: the promise rejects with its reason. */
  signal?: AbortSignal;
  /** Cancel the task when the signal aborts; the promise rejects when the server has answered, at most 5 s later. Default: false. */
  cancelOnAbort?: boolean;
}

/** How a function is called. */
export interface CallOptions extends SubmitOptions {
  /** Milliseconds to wait before a TaskUnfinishedError; the task goes on. Default: as long as it takes. */
  waitMs?: number;
}

/** A function to register. */
export interface Registration {
  /** 1 to 256 characters. It is no key: the newest registration of a name is what the name means. */
  name: string;
  /** Python source text that defines a callable called `name`, or only one function. */
  source: string;
  /** Where its tasks wait. Default: "default". */
  queue?: string;
  /**
   * One registration for all who send the same name, source and queue; it goes when no task has named it for a
   * retention. Default: false: each call makes a new one, which stays.
   */
  transient?: boolean;
  /** Makes a repeated call find what the first one registered. Default: a new one for each call. */
  requestId?: string;
}

/** What a server is. */
export interface ServerInfo {
  readonly version: string;
  /** "memory", "embedded", "redis-async" or "redis-replicated". */
  readonly durability: string;
  /** The one limit on arguments and on a result, in bytes. */
  readonly maxPayload: number;
  /** How long records and results of finished tasks are kept, in milliseconds. */
  readonly retentionMs: number;
}

/** How many rows a server puts into one page at most. */
const PAGE = 1000;

const SUBMIT_NAMES = ["kwargs", "options", "requestId", "signal", "cancelOnAbort"];
const WAIT_NAMES = ["waitMs", "signal", "cancelOnAbort"];

/**
 * How long a server is asked to wait in a call, in milliseconds. It grants 5 min, but as long as it may wait a call
 * that something has swallowed is not told from one that runs; what lasts longer is awaited by a stream.
 */
const SERVER_WAIT_MS = 20_000;
/**
 * How many calls wait in a request of their own. That answers soonest, but costs the machine many times the share
 * of a batch: past that number calls travel together.
 */
const MAX_DIRECT = 8;

/**
 * A client of one Treadle server, made by createClient. It connects with the first call, again after a lost
 * connection, and carries any number of calls at once. What is under way keeps the Node process alive, an idle
 * connection does not; `close` ends both at once.
 *
 * Calls that a server refuses, or that reach none, reject with a ConnectError: `reasonOf(error)` is what programs
 * should act on. What could never be right is a TypeError, and nothing is sent.
 */
export class Client {
  readonly #core: Core;
  #direct = 0;

  /** Use createClient. */
  constructor(core: Core) {
    this.#core = core;
  }

  /** Where the server is: "host:port". */
  get address(): string {
    return this.#core.connection.address;
  }

  /** Every method of the API as it is on the wire; `@treadle/client/rpc` has its messages. Streams are not made again. */
  get rpc(): Rpc {
    return this.#core.connection.rpc;
  }

  /** Ends the connection. What is under way rejects with a ClientClosedError; tasks go on. Calling it twice is fine. */
  close(): void {
    this.#core.connection.close();
    this.#core.awaiter.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Registers a Python function from its source text. */
  async register(registration: Registration): Promise<RegisteredFunction> {
    checkNames("the registration", registration, ["name", "source", "queue", "transient", "requestId"]);
    for (const field of ["name", "source"] as const) {
      if (typeof (registration as Partial<Registration> | undefined)?.[field] !== "string") {
        throw new TypeError(`the registration's ${field} is ${described((registration as Partial<Registration> | undefined)?.[field])}: want text`);
      }
    }
    return functionOf(await this.#core.ask(this.rpc.registerFunction({ ...registration })));
  }

  /** A registration by id, or the newest one of a name. */
  async function(fn: FunctionLike): Promise<RegisteredFunction> {
    return functionOf(await this.#core.ask(this.rpc.getFunction({ function: functionId(fn) })));
  }

  /** All registrations, newest first. */
  async *functions(): AsyncGenerator<RegisteredFunction, void, undefined> {
    for (let pageToken = ""; ; ) {
      const page = await this.#core.ask(this.rpc.listFunctions({ pageToken, pageSize: PAGE }));
      yield* page.functions.map(functionOf);
      if ((pageToken = page.nextPageToken) === "") return;
    }
  }

  /**
   * Deletes a registration: what register gave, or its id, as a name may mean another one tomorrow. The reason is
   * FUNCTION_IN_USE while it has unfinished tasks.
   */
  async deleteFunction(fn: FunctionLike): Promise<void> {
    await this.#core.ask(this.rpc.deleteFunction({ functionId: functionId(fn) }));
  }

  /** Version, durability and limits of the server. */
  async info(): Promise<ServerInfo> {
    const { version, durability, maxPayload, retention } = await this.#core.ask(this.rpc.getServerInfo({}));
    return { version, durability, maxPayload, retentionMs: retention === undefined ? 0 : durationMs(retention) };
  }

  /**
   * Executes a function with these positional arguments, waits for it, and gives its value. It rejects with a
   * TaskFailedError, its TaskCancelledError, a TaskUnfinishedError, or a NoJsonValueError.
   *
   * @typeParam T - what the function returns; it is not checked
   */
  async call<T = unknown>(fn: FunctionLike, args: readonly unknown[] = [], options: CallOptions = {}): Promise<T> {
    checkNames("options", options, ["waitMs", ...SUBMIT_NAMES]);
    const limits = limitsOf(options);
    const request = requestOf(fn, args, options);
    if (this.#direct >= MAX_DIRECT || options.cancelOnAbort === true) {
      const handle = await this.#core.submit<T>(request, nameOf(fn), limits, options.cancelOnAbort);
      return (await this.#core.finished<T>(handle.id, limits, options.cancelOnAbort, nameOf(fn))).value();
    }
    this.#direct++;
    try {
      const result = await this.#callDirect<T>(request, nameOf(fn), limits);
      if (isFinal(result.status)) {
        return result.value();
      }
      return (await this.#core.finished<T>(result.taskId, limits, false, nameOf(fn))).value();
    } finally {
      this.#direct--;
    }
  }

  async #callDirect<T>(request: ExecuteRequest, name: string, limits: Limits): Promise<Result<T>> {
    const { args, kwargs, options, requestId } = request;
    const left = limits.end === undefined ? SERVER_WAIT_MS : limits.end - performance.now();
    const ended = new AbortController();
    const answer = this.rpc.call(
      create(CallRequestSchema, {
        function: request.function,
        // A little less than is left, so that the error of a wait that was too short names the task.
        timeout: durationFromMs(Math.floor(Math.min(Math.max(left - Math.min(left / 10, 100), 0), SERVER_WAIT_MS))),
        input: create(CallInputSchema, { args, kwargs, requestId, ...(options && { options }) }),
      }),
      { signal: ended.signal },
    );
    try {
      const result = await this.#core.ask(within(answer, limits));
      if (result === TIMED_OUT) {
        throw unrecorded(name);
      }
      return new Result<T>(result);
    } finally {
      ended.abort();
      answer.catch(() => undefined); // whoever asked has gone
    }
  }

  /**
   * Records one task and gives its handle when the task is durable. It then runs whatever becomes of this program.
   * What is submitted at the same time travels together.
   */
  async submit<T = unknown>(fn: FunctionLike, args: readonly unknown[] = [], options: SubmitOptions = {}): Promise<TaskHandle<T>> {
    checkNames("options", options, SUBMIT_NAMES);
    const limits = limitsOf(options);
    return this.#core.submit<T>(requestOf(fn, args, options), nameOf(fn), limits, options.cancelOnAbort);
  }

  /**
   * Executes a function once for each item, as its one argument, and ranges over the values in the order of the
   * items. At most `inFlight` tasks are under way. A task that failed is thrown where its value would be. Whatever
   * ends the loop early, that, a break, the signal or `waitMs`, cancels what is still under way. Nothing is
   * submitted before the first value is asked for.
   *
   * @typeParam T - what the function returns; it is not checked
   */
  map<T = unknown>(fn: FunctionLike, items: Iterable<unknown> | AsyncIterable<unknown>, options: MapOptions = {}): AsyncGenerator<T, void, undefined> {
    return mapped<T>((item, choices) => this.submit<T>(fn, item, choices), this.#core, items, options);
  }

  /** The handle of a task that is recorded, for example by another program. It asks nobody: an unknown id is told by what it is used for. */
  task<T = unknown>(id: string): TaskHandle<T> {
    return new TaskHandle<T>(this.#core, taskId(id), "");
  }

  /**
   * Records of tasks, newest first. Their errors have no traceback, and at most 1 KiB of the message; `record()` of a
   * handle has all of it.
   *
   * The filter is for example 'status = FAILED AND function = "double"': status, function, parent and worker with =,
   * create_time with < and >, joined by AND. Default: all tasks.
   */
  async *tasks(filter = ""): AsyncGenerator<TaskRecord, void, undefined> {
    for (let pageToken = ""; ; ) {
      const page = await this.#core.ask(this.rpc.listTasks({ filter, pageToken, pageSize: PAGE }));
      yield* page.tasks.map(taskOf);
      if ((pageToken = page.nextPageToken) === "") return;
    }
  }

  /**
   * Ranges over the results of tasks as they finish, in any order, each once. A task that failed is a result like
   * any other: `value()` throws. Rejects with a TaskUnfinishedError when `waitMs` is over.
   */
  async *wait<T = unknown>(tasks: Iterable<string | { readonly id: string }>, options: WaitOptions = {}): AsyncGenerator<Result<T>, void, undefined> {
    checkNames("options", options, WAIT_NAMES);
    const limits = limitsOf(options);
    const left = new Set(Array.from(tasks, (task) => taskId(typeof task === "string" ? task : task.id)));
    const ready: Result<T>[] = [];
    let failure: { error: unknown } | undefined;
    let wake = () => {};
    const waiters = Array.from(
      left,
      (id): Waiter => ({
        id,
        done: (m) => {
          ready.push(new Result<T>(m));
          wake();
        },
        failed: (error) => {
          failure ??= { error };
          wake();
        },
      }),
    );
    for (const waiter of waiters) this.#core.awaiter.add(waiter);
    try {
      while (left.size > 0) {
        const result = ready.shift();
        if (result !== undefined) {
          left.delete(result.taskId);
          yield result;
          continue;
        }
        if (failure !== undefined) {
          throw this.#core.translated(failure.error);
        }
        const news = new Promise<void>((resolve) => {
          wake = resolve;
        });
        if ((await within(news, limits)) === TIMED_OUT) {
          const [first = ""] = left;
          throw await this.#core.unfinished(first, "", left.size > 1 ? `, and ${String(left.size - 1)} more are not finished` : "");
        }
      }
    } catch (error) {
      if (limits.signal?.aborted === true && options.cancelOnAbort === true) {
        await this.#core.cancelAll(left);
      }
      throw error;
    } finally {
      for (const waiter of waiters) this.#core.awaiter.leave(waiter);
    }
  }
}

/** The id, or the name, that a function is called by. */
function functionId(fn: unknown): string {
  const id: unknown = typeof fn === "object" && fn !== null && "id" in fn ? fn.id : fn;
  if (typeof id === "string" && id !== "") {
    return id;
  }
  const hint = typeof fn === "function" ? ". Workers run Python, or Go handlers, and no JavaScript" : "";
  throw new TypeError(`the function is ${described(fn)}: want an id, a name, or what register gave${hint}`);
}

/** What people know a function by. */
function nameOf(fn: FunctionLike): string {
  return typeof fn === "string" ? fn : "name" in fn && typeof fn.name === "string" ? fn.name : fn.id;
}

function taskId(id: unknown): string {
  if (typeof id !== "string" || !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id)) {
    throw new TypeError(`the task id is ${described(id)}: want a UUID, for example 01890a5d-ac96-774b-bcce-b302099a8057`);
  }
  return id.toLowerCase(); // as the server writes them
}

/** The request to execute a function, under a request id of its own. */
function requestOf(fn: FunctionLike, args: readonly unknown[], options: SubmitOptions): ExecuteRequest {
  const { kwargs, requestId } = options;
  if (!Array.isArray(args)) {
    throw new TypeError(`the arguments are ${described(args)}: want an array of them, for example [21]; keyword arguments are options.kwargs`);
  }
  if (kwargs !== undefined && (typeof kwargs !== "object" || (kwargs as unknown) === null || Array.isArray(kwargs))) {
    throw new TypeError(`options.kwargs is ${described(kwargs)}: want an object`);
  }
  if (requestId !== undefined && typeof requestId !== "string") {
    throw new TypeError(`options.requestId is ${described(requestId)}: want text`);
  }
  const choices = optionsMessage(options.options);
  return create(ExecuteRequestSchema, {
    function: functionId(fn),
    args: toJson(args, "args"),
    ...(kwargs !== undefined && Object.keys(kwargs).length > 0 && { kwargs: toJson(kwargs, "kwargs") }),
    ...(choices && { options: choices }),
    requestId: requestId || randomUUID(),
  });
}
