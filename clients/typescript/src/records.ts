import { create } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampDate, timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import { NoJsonValueError, TaskCancelledError, TaskFailedError, TaskUnfinishedError, type Failure } from "./errors.js";
import {
  ExecuteOptionsSchema,
  Task_Status,
  type ExecuteOptions,
  type Function as FunctionMessage,
  type Task,
  type TaskError,
  type TaskResult,
} from "./gen/treadle/v1/fabric_pb.js";

/** Status of a task. It moves QUEUED, RUNNING, and to one of the others, which are final; a requeue leads back to QUEUED. */
export type Status = "QUEUED" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELLED";

/** Whether a status is final. */
export function isFinal(status: Status): boolean {
  return status !== "QUEUED" && status !== "RUNNING";
}

/** The word of a status. */
export function statusOf(status: Task_Status): Status {
  return (Task_Status[status] as Status | undefined) ?? (String(status) as Status);
}

/** Choices of one task; all are optional. */
export interface TaskOptions {
  /** From 0 to 9, higher first. Default: 5. */
  priority?: number;
  /** Milliseconds that one attempt may run. Default: the server's --task-timeout, which is none unless set. */
  timeoutMs?: number;
  /** When the task has to be finished, waiting included. Default: never. */
  deadline?: Date;
  /** How many lost workers the task survives. Default: the server's --max-retries, 3 unless set. */
  maxRetries?: number;
  /** How often a raised exception is tried again. Default: 0. */
  functionRetries?: number;
  /** Memory of one attempt, in bytes. Default: the worker's --memory-limit. */
  memoryLimit?: number;
}

/** Refuses names that an object of options does not have: a typo would go unnoticed otherwise. */
export function checkNames(what: string, given: object | undefined, known: readonly string[]): void {
  if (given === undefined) {
    return;
  }
  if (typeof given !== "object" || (given as unknown) === null || Array.isArray(given)) {
    throw new TypeError(`${what} is ${described(given)}: want an object`);
  }
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) {
      throw new TypeError(`${what}.${name} is unknown: want ${known.join(", ")}`);
    }
  }
}

/** A value in an error: short, and as it would be written. */
export function described(value: unknown): string {
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  if (typeof value === "function") return "a function";
  return typeof value === "string" ? JSON.stringify(value.slice(0, 60)) : String(value);
}

const INTEGERS = ["priority", "maxRetries", "functionRetries"] as const;

/** The options as the API has them; undefined where there are none. */
export function optionsMessage(options: TaskOptions | undefined): ExecuteOptions | undefined {
  if (options === undefined) {
    return undefined;
  }
  checkNames("options.options", options, ["priority", "timeoutMs", "deadline", "maxRetries", "functionRetries", "memoryLimit"]);
  const out = create(ExecuteOptionsSchema);
  const refuse = (name: keyof TaskOptions, want: string): never => {
    throw new TypeError(`options.options.${name} is ${described(options[name])}: want ${want}`);
  };
  for (const name of INTEGERS) {
    const value = options[name];
    if (value === undefined) continue;
    // The range is the server's to refuse, which names the limit.
    if (!Number.isInteger(value) || Math.abs(value) > 0x7fffffff) refuse(name, "an integer");
    out[name] = value;
  }
  if (options.timeoutMs !== undefined) {
    if (typeof options.timeoutMs !== "number" || !(options.timeoutMs > 0 && options.timeoutMs < 1e14)) refuse("timeoutMs", "milliseconds, more than 0");
    out.timeout = durationFromMs(Math.ceil(options.timeoutMs));
  }
  if (options.deadline !== undefined) {
    if (!(options.deadline instanceof Date) || Number.isNaN(options.deadline.getTime())) refuse("deadline", "a Date");
    out.deadline = timestampFromDate(options.deadline);
  }
  if (options.memoryLimit !== undefined) {
    if (!Number.isSafeInteger(options.memoryLimit)) refuse("memoryLimit", "bytes as an integer");
    out.memoryLimit = BigInt(options.memoryLimit);
  }
  return out;
}

/** A registration. It never changes. */
export interface RegisteredFunction {
  readonly id: string;
  readonly name: string;
  /** "python", or "go/" and the name of a handler. */
  readonly runtime: string;
  readonly queue: string;
  readonly createdAt: Date | undefined;
}

export function functionOf(m: FunctionMessage): RegisteredFunction {
  return { id: m.functionId, name: m.name, runtime: m.runtime, queue: m.queue, createdAt: dateOf(m.createdAt) };
}

/** One started try of a task. */
export interface Attempt {
  /** From 1. */
  readonly number: number;
  readonly worker: string;
  readonly startedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
  /** "succeeded", "raised", "lost", "returned", "timed_out", "exhausted", "unreadable" or "cancelled"; "" while it runs. */
  readonly end: string;
  /** One line on an end other than "succeeded". */
  readonly reason: string;
}

/** The record of one task. */
export interface TaskRecord {
  readonly id: string;
  readonly functionId: string;
  readonly functionName: string;
  readonly queue: string;
  readonly runtime: string;
  readonly status: Status;
  readonly createdAt: Date | undefined;
  /** Start of the latest attempt. */
  readonly startedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
  /** Until when a requeued task waits. */
  readonly notBefore: Date | undefined;
  /** Worker of the latest attempt; "" before the first. */
  readonly worker: string;
  /** How many attempts were started; `attempts` has the last 16 of them. */
  readonly attemptCount: number;
  readonly attempts: readonly Attempt[];
  readonly error: Failure | undefined;
  /** The options in force, defaults filled in. */
  readonly options: TaskOptions;
  /** The task that submitted it; "" for a client's. */
  readonly parentId: string;
}

export function taskOf(m: Task): TaskRecord {
  return {
    id: m.taskId,
    functionId: m.functionId,
    functionName: m.functionName,
    queue: m.queue,
    runtime: m.runtime,
    status: statusOf(m.status),
    createdAt: dateOf(m.createdAt),
    startedAt: dateOf(m.startedAt),
    finishedAt: dateOf(m.finishedAt),
    notBefore: dateOf(m.notBefore),
    worker: m.worker,
    attemptCount: m.attemptCount,
    attempts: m.attempts.map((a) => ({
      number: a.number,
      worker: a.worker,
      startedAt: dateOf(a.startedAt),
      finishedAt: dateOf(a.finishedAt),
      end: a.end,
      reason: a.reason,
    })),
    error: failureOf(m.error),
    options: optionsOf(m.options),
    parentId: m.parentId,
  };
}

function optionsOf(m: ExecuteOptions | undefined): TaskOptions {
  const out: TaskOptions = {};
  for (const name of INTEGERS) {
    if (m?.[name] !== undefined) out[name] = m[name];
  }
  if (m?.timeout !== undefined) out.timeoutMs = durationMs(m.timeout);
  if (m?.deadline !== undefined) out.deadline = timestampDate(m.deadline);
  if (m !== undefined && m.memoryLimit > 0n) out.memoryLimit = Number(m.memoryLimit);
  return out;
}

function dateOf(t: Timestamp | undefined): Date | undefined {
  return t === undefined ? undefined : timestampDate(t);
}

function failureOf(e: TaskError | undefined): Failure | undefined {
  return e && { errorType: e.errorType, exceptionType: e.exceptionType, message: e.message, traceback: e.traceback, workerId: e.workerId };
}

/** How a task ended, or how far it is. */
export class Result<T = unknown> {
  readonly taskId: string;
  readonly status: Status;
  /** The value as JSON text: integers beyond Number.MAX_SAFE_INTEGER are exact here. undefined where there is none. */
  readonly json: string | undefined;
  /** Short text of a value that JSON cannot hold; "" otherwise. */
  readonly repr: string;
  /** Why it is FAILED or CANCELLED. */
  readonly error: Failure | undefined;

  constructor(m: TaskResult) {
    this.taskId = m.taskId;
    this.status = statusOf(m.status);
    this.json = m.result && new TextDecoder("utf-8", { fatal: true }).decode(m.result);
    this.repr = m.resultRepr;
    this.error = failureOf(m.error);
  }

  /**
   * The value of a COMPLETED task. Throws a {@link TaskFailedError}, its {@link TaskCancelledError}, a
   * {@link TaskUnfinishedError}, or a {@link NoJsonValueError}.
   */
  value(): T {
    switch (this.status) {
      case "COMPLETED":
        if (this.json === undefined) {
          throw new NoJsonValueError(this.taskId, this.repr);
        }
        return JSON.parse(this.json) as T;
      case "CANCELLED":
        throw new TaskCancelledError(this.taskId, this.status, this.error);
      case "FAILED":
        throw new TaskFailedError(this.taskId, this.status, this.error);
      default:
        throw new TaskUnfinishedError(`task ${this.taskId} is ${this.status}`, this.taskId, this.status);
    }
  }
}
