import { Code, ConnectError } from "@connectrpc/connect";
import type { Connection } from "./connection.js";
import { ClientClosedError } from "./errors.js";
import { Outage } from "./outage.js";
import { isFinal, statusOf } from "./records.js";
import type { TaskResult } from "./gen/treadle/v1/fabric_pb.js";

/** How many streams are open at once, as long as the server's limit of ids per stream allows so few. */
const MAX_STREAMS = 8;
/** The server's limit of ids per stream. */
const MAX_IDS = 10_000;

/** One who waits for one result. */
export interface Waiter {
  readonly id: string;
  readonly done: (result: TaskResult) => void;
  readonly failed: (error: unknown) => void;
}

/** Those that one stream waits for. */
class Group {
  readonly waiting = new Map<string, Set<Waiter>>();
  retired = false;
  stream: AbortController | undefined;

  join(waiter: Waiter): void {
    const others = this.waiting.get(waiter.id);
    if (others === undefined) {
      this.waiting.set(waiter.id, new Set([waiter]));
    } else {
      others.add(waiter);
    }
  }

  retire(): void {
    this.retired = true;
    this.stream?.abort();
  }
}

/**
 * Delivers results. What begins to wait in one turn of the event loop is awaited by one stream. The ids of a
 * stream are fixed when it opens, so others get one of their own, and when there are too many the two smallest
 * become one: an id is sent again a few times, not once for each newcomer.
 */
export class Awaiter {
  readonly #connection: Connection;
  readonly #groups = new Set<Group>();
  readonly #home = new Map<Waiter, Group>();
  #joining = new Set<Waiter>();

  /** Streams are opened again for the connection's `retryMs` while no server answers. */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Has the result of a waiter's task delivered to it, or an error, unless it leaves before. */
  add(waiter: Waiter): void {
    if (this.#connection.isClosed()) {
      waiter.failed(new ClientClosedError());
      return;
    }
    if (this.#joining.size === 0) {
      queueMicrotask(() => {
        this.#seat();
      });
    }
    this.#joining.add(waiter);
  }

  /** Ends a wait: the last one to leave ends the stream. */
  leave(waiter: Waiter): void {
    this.#joining.delete(waiter);
    const group = this.#home.get(waiter);
    if (group === undefined) {
      return;
    }
    this.#home.delete(waiter);
    const others = group.waiting.get(waiter.id);
    others?.delete(waiter);
    if (others?.size === 0) {
      group.waiting.delete(waiter.id);
    }
    if (group.waiting.size === 0) {
      this.#groups.delete(group);
      group.retire();
    }
  }

  /** Fails all who wait. */
  close(): void {
    const all = [...this.#joining, ...this.#home.keys()];
    this.#joining.clear();
    this.#home.clear();
    for (const group of this.#groups) {
      group.retire();
    }
    this.#groups.clear();
    for (const waiter of all) {
      waiter.failed(new ClientClosedError());
    }
  }

  #seat(): void {
    let group: Group | undefined;
    for (const waiter of this.#joining) {
      if (group === undefined || (group.waiting.size >= MAX_IDS && !group.waiting.has(waiter.id))) {
        if (group !== undefined) this.#start(group);
        group = new Group();
      }
      group.join(waiter);
    }
    this.#joining.clear();
    if (group !== undefined) this.#start(group);
    this.#merge();
  }

  #start(group: Group): void {
    for (const waiters of group.waiting.values()) {
      for (const waiter of waiters) this.#home.set(waiter, group);
    }
    this.#groups.add(group);
    void this.#serve(group).catch((error: unknown) => {
      this.#giveUp(group, error);
    });
  }

  #merge(): void {
    while (this.#groups.size > MAX_STREAMS) {
      const [small, next] = [...this.#groups].sort((a, b) => a.waiting.size - b.waiting.size);
      if (small === undefined || next === undefined || small.waiting.size + next.waiting.size > MAX_IDS) {
        return;
      }
      const together = new Group();
      for (const old of [small, next]) {
        for (const waiters of old.waiting.values()) {
          for (const waiter of waiters) together.join(waiter);
        }
        old.waiting.clear();
        this.#groups.delete(old);
        old.retire();
      }
      this.#start(together);
    }
  }

  /** Keeps a stream open until all of the group have their results. */
  async #serve(group: Group): Promise<void> {
    const outage = new Outage(this.#connection);
    while (!group.retired && group.waiting.size > 0) {
      outage.begin();
      const { progress, error } = await this.#listen(group);
      if (progress) {
        outage.over();
      }
      if (error === undefined || group.retired || (error.code === Code.NotFound && (await this.#sift(group)))) {
        continue;
      }
      // Where nobody could say which task it was that is not there, somebody may in a moment.
      await outage.survive(error.code === Code.NotFound ? new ConnectError(error.rawMessage, Code.Unavailable) : error);
    }
    this.#groups.delete(group);
  }

  /** Reads one stream to its end; says whether anything came, and the error that ended it. */
  async #listen(group: Group): Promise<{ progress: boolean; error?: ConnectError }> {
    let progress = false;
    const stream = new AbortController();
    group.stream = stream;
    try {
      for await (const { results } of this.#connection.rpc.awaitResults({ taskIds: [...group.waiting.keys()] }, { signal: stream.signal })) {
        progress = true;
        for (const result of results) {
          if (isFinal(statusOf(result.status))) this.#deliver(group, result.taskId, (waiter) => { waiter.done(result); });
        }
      }
    } catch (error) {
      return { progress, error: ConnectError.from(error) };
    } finally {
      group.stream = undefined;
    }
    if (group.waiting.size > 0 && !progress) {
      return { progress, error: new ConnectError("AwaitResults: the stream ended without results", Code.Unavailable) };
    }
    return { progress };
  }

  #deliver(group: Group, id: string, tell: (waiter: Waiter) => void): void {
    const waiters = group.waiting.get(id);
    group.waiting.delete(id);
    for (const waiter of waiters ?? []) {
      this.#home.delete(waiter);
      tell(waiter);
    }
  }

  /**
   * Fails those who wait for tasks that the server does not know, so that they do not take the others with
   * them; says whether there were any.
   */
  async #sift(group: Group): Promise<boolean> {
    let found = false;
    for (const id of [...group.waiting.keys()]) {
      try {
        await this.#connection.rpc.getTask({ taskId: id });
      } catch (error) {
        if (ConnectError.from(error).code !== Code.NotFound) {
          return found;
        }
        found = true;
        this.#deliver(group, id, (waiter) => { waiter.failed(error); });
      }
    }
    return found;
  }

  #giveUp(group: Group, error: unknown): void {
    this.#groups.delete(group);
    for (const id of [...group.waiting.keys()]) {
      this.#deliver(group, id, (waiter) => { waiter.failed(error); });
    }
  }
}
