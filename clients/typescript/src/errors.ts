import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { ConnectError } from "@connectrpc/connect";
import { ERROR_INFO } from "./reason.js";
import type { Status } from "./records.js";
import type { ItemError } from "./gen/treadle/v1/fabric_pb.js";

/** Why a task is FAILED or CANCELLED. */
export interface Failure {
  /**
   * The failure class: "FunctionExecutionFailure", "WorkerFailureError", "DeadlineExceededError",
   * "ResourceLimitExceeded", "SerializationError" or "Cancelled".
   */
  readonly errorType: string;
  /** The exception's class, for example "ValueError"; "" where none was raised. */
  readonly exceptionType: string;
  readonly message: string;
  /** The worker's traceback, at most 64 KiB; may be "". */
  readonly traceback: string;
  /** The worker of the last attempt; "" where there was none. */
  readonly workerId: string;
}

/** A task is FAILED, or CANCELLED, see {@link TaskCancelledError}. */
export class TaskFailedError extends Error implements Failure {
  override readonly name: string = "TaskFailedError";
  readonly taskId: string;
  readonly status: Status;
  readonly errorType: string;
  readonly exceptionType: string;
  /** The exception's text as the function raised it; `message` has the task and the class before it. */
  readonly reason: string;
  readonly traceback: string;
  readonly workerId: string;

  constructor(taskId: string, status: Status, failure: Failure | undefined) {
    const kind = failure?.exceptionType || failure?.errorType || status;
    super(`task ${taskId}: ${kind}: ${failure?.message ?? ""}`);
    this.taskId = taskId;
    this.status = status;
    this.errorType = failure?.errorType ?? "";
    this.exceptionType = failure?.exceptionType ?? "";
    this.reason = failure?.message ?? "";
    this.traceback = failure?.traceback ?? "";
    this.workerId = failure?.workerId ?? "";
  }
}

/** A task was cancelled, by this client or by another one. */
export class TaskCancelledError extends TaskFailedError {
  override readonly name = "TaskCancelledError";
}

/**
 * A wait ended before the task did, because of its `waitMs`. The task goes on: `client.task(taskId)` waits for it anew.
 */
export class TaskUnfinishedError extends Error {
  override readonly name = "TaskUnfinishedError";
  /** undefined where no server has answered yet, so that it is not known whether the task is recorded. */
  readonly taskId: string | undefined;
  /** What the server said last: QUEUED or RUNNING; undefined where it could not be asked. */
  readonly status: Status | undefined;

  constructor(message: string, taskId?: string, status?: Status) {
    super(message);
    this.taskId = taskId;
    this.status = status;
  }
}

/** A COMPLETED task has no value that JSON can hold. */
export class NoJsonValueError extends Error {
  override readonly name = "NoJsonValueError";
  readonly taskId: string;

  constructor(taskId: string, repr: string) {
    super(`task ${taskId} is COMPLETED with a value that is not JSON: ${repr || "a pickle"}`);
    this.taskId = taskId;
  }
}

/** The client was closed. Tasks that it recorded go on. */
export class ClientClosedError extends Error {
  override readonly name = "ClientClosedError";

  constructor() {
    super("the client is closed; tasks that it submitted go on");
  }
}

/** The error of one item of a batch, as a call of its own would have ended in it. */
export function itemError(item: ItemError): ConnectError {
  const error = new ConnectError(item.message, item.code);
  const value = new BinaryWriter()
    .tag(1, WireType.LengthDelimited)
    .string(item.reason)
    .tag(2, WireType.LengthDelimited)
    .string("treadle.dev")
    .finish();
  error.details.push({ type: ERROR_INFO, value });
  return error;
}
