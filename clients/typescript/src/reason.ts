import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { ConnectError } from "@connectrpc/connect";

/** The reasons of docs/errors.md that gRPC answers carry. A newer server may know more. */
export const KNOWN_REASONS = [
  "INVALID_REQUEST",
  "INVALID_PAYLOAD",
  "NOT_FOUND",
  "REQUEST_ID_CONFLICT",
  "ILLEGAL_STATE",
  "FUNCTION_IN_USE",
  "TOO_LARGE",
  "EXHAUSTED",
  "QUOTA_EXCEEDED",
  "RATE_LIMITED",
  "UNAVAILABLE",
  "UNAUTHENTICATED",
  "DENIED",
  "NOT_SERVED",
  "BUSY",
  "BODY_TOO_SLOW",
  "CALL_CANCELLED",
  "CALL_TIMED_OUT",
  "INTERNAL",
  "TLS_REQUIRED",
] as const;

/** One of the reasons that this version knows. */
export type KnownReason = (typeof KNOWN_REASONS)[number];

/** A reason: editors complete the known ones, and any other text is one too. */
export type Reason = KnownReason | (string & {});

/** What a server says of an error to programs. */
export interface ErrorInfo {
  readonly reason: Reason;
  /** "treadle.dev" for every error of a Treadle server. */
  readonly domain: string;
  /** More about some reasons, for example `field`, or `quota`, `used` and `limit`. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Type of the detail that has a reason. */
export const ERROR_INFO = "google.rpc.ErrorInfo";

/**
 * The reason of an error that a call ended in, which is what programs should act on; see
 * docs/errors.md. It is undefined where no server gave one: for an error that is none of a call,
 * and for a call that reached no Treadle server.
 */
export function reasonOf(error: unknown): Reason | undefined {
  return errorInfoOf(error)?.reason;
}

/** The reason of an error, with its domain and metadata; undefined where {@link reasonOf} is. */
export function errorInfoOf(error: unknown): ErrorInfo | undefined {
  if (!(error instanceof ConnectError)) {
    return undefined;
  }
  for (const detail of error.details) {
    if ("type" in detail && detail.type === ERROR_INFO) {
      try {
        return decode(detail.value);
      } catch {
        return undefined; // something between the server and this client wrote it
      }
    }
  }
  return undefined;
}

/** Reads a google.rpc.ErrorInfo, so that no package is needed which has all of google.rpc. */
function decode(bytes: Uint8Array): ErrorInfo {
  let reason = "";
  let domain = "";
  const metadata: [string, string][] = [];
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wire] = reader.tag();
    if (wire !== WireType.LengthDelimited || field > 3) {
      reader.skip(wire, field);
    } else if (field === 1) {
      reason = reader.string();
    } else if (field === 2) {
      domain = reader.string();
    } else {
      metadata.push(entry(reader.bytes()));
    }
  }
  return { reason, domain, metadata: Object.fromEntries(metadata) };
}

function entry(bytes: Uint8Array): [string, string] {
  const texts = ["", ""] as [string, string];
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wire] = reader.tag();
    if (wire === WireType.LengthDelimited && (field === 1 || field === 2)) {
      texts[field - 1] = reader.string();
    } else {
      reader.skip(wire, field);
    }
  }
  return texts;
}
