/**
 * The API as it is on the wire, for `client.rpc`: its messages, and what translates between values and the JSON
 * that they carry. Most programs need nothing of it.
 *
 * @module
 */
import { toJson } from "./json.js";
import { Result } from "./records.js";
import type { TaskResult } from "./gen/treadle/v1/fabric_pb.js";

export * from "./gen/treadle/v1/fabric_pb.js";

/**
 * JSON text of a value, as the fields `args` (an array) and `kwargs` (an object) want it. Throws a TypeError that
 * names the place where there is something that JSON cannot hold.
 */
export function encodeJson(value: unknown): Uint8Array {
  return toJson(value, "the value");
}

/** The value of a COMPLETED result; throws what Result.value throws. */
export function resultOf<T = unknown>(result: TaskResult): T {
  return new Result<T>(result).value();
}
