import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { itemError } from "./errors.js";
import { reasonOf } from "./reason.js";
import { weight } from "./retry.js";
import { ExecuteBatchRequestSchema, type ExecuteBatchResponse, type ExecuteBatchRequest, type ExecuteRequest } from "./gen/treadle/v1/fabric_pb.js";

/**
 * How many batches may be under way at once. While one is waited for the next fills; a few hide
 * the round trip, many would make batches small.
 */
const MAX_FLIGHTS = 4;
/** Keeps one batch from delaying its first item for its last. The server's limit is 10,000. */
const MAX_ITEMS = 1000;
/** Well below the message limit; one request alone may be larger. */
const MAX_BYTES = 32 << 20;

interface Passenger {
  readonly request: ExecuteRequest;
  readonly size: number;
  readonly recorded: (taskId: string) => void;
  readonly refused: (error: unknown) => void;
}

/**
 * Lets submissions travel together: what is submitted in one turn of the event loop, or while batches
 * are under way, leaves in one. No timer is involved.
 */
export class Batcher {
  readonly #send: (request: ExecuteBatchRequest) => Promise<ExecuteBatchResponse>;
  #queue: Passenger[] = [];
  #flights = 0;
  #scheduled = false;

  constructor(send: (request: ExecuteBatchRequest) => Promise<ExecuteBatchResponse>) {
    this.#send = send;
  }

  /** Records one task and gives its id. */
  submit(request: ExecuteRequest): Promise<string> {
    return new Promise((recorded, refused) => {
      this.#queue.push({ request, size: weight(request), recorded, refused });
      if (!this.#scheduled) {
        this.#scheduled = true;
        queueMicrotask(() => {
          this.#scheduled = false;
          this.#depart();
        });
      }
    });
  }

  #depart(): void {
    while (this.#queue.length > 0 && this.#flights < MAX_FLIGHTS) {
      const aboard = this.#board();
      this.#flights++;
      void this.#fly(aboard).finally(() => {
        this.#flights--;
        this.#depart();
      });
    }
  }

  #board(): Passenger[] {
    let count = 0;
    let size = 0;
    for (const passenger of this.#queue) {
      size += passenger.size;
      if (count === MAX_ITEMS || (count > 0 && size > MAX_BYTES)) {
        break;
      }
      count++;
    }
    return this.#queue.splice(0, count);
  }

  async #fly(aboard: Passenger[]): Promise<void> {
    try {
      const { items } = await this.#send(create(ExecuteBatchRequestSchema, { requests: aboard.map((p) => p.request) }));
      if (items.length !== aboard.length) {
        throw new ConnectError(`the server gave ${String(items.length)} answers to ${String(aboard.length)} requests`, Code.Internal);
      }
      aboard.forEach((passenger, i) => {
        const item = items[i];
        if (item?.error !== undefined) {
          passenger.refused(itemError(item.error));
        } else {
          passenger.recorded(item?.taskId ?? "");
        }
      });
    } catch (error) {
      if (aboard.length > 1 && isRefusedWhole(error)) {
        // Nothing of it was recorded, and one request may be to blame: halves find it in 2 log n calls.
        const half = aboard.length >> 1;
        await this.#fly(aboard.slice(0, half));
        await this.#fly(aboard.slice(half));
        return;
      }
      for (const passenger of aboard) {
        passenger.refused(error);
      }
    }
  }
}

/** Whether a batch was refused for what it holds, before any of it was recorded. */
function isRefusedWhole(error: unknown): boolean {
  return ConnectError.from(error).code === Code.InvalidArgument || reasonOf(error) === "TOO_LARGE";
}
