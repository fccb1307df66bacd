/**
 * @file The disk tier of the prefix cache, as the engine sees it: nothing here waits for a disk.
 *
 * A thread (thread.ts) owns the files. Loading is asked for when a request arrives, with a time
 * budget: what has come by then, block after block, is used, and the rest is computed. Storing runs
 * behind: one request at a time, the payloads fetched one by one when the thread is ready for them,
 * so that memory holds one copy of a block and loads are served in between. A payload that the
 * engine no longer has ends its request; requests beyond 64 waiting are dropped.
 *
 * A disk that hangs costs one request its budget: until the thread is heard of again, nothing is
 * asked of it. If the thread dies the tier is off: loads find nothing, stores do nothing, `problem`
 * says why. No failure here ever fails a request.
 */
import { Worker } from "node:worker_threads";
import { floorDiv } from "../../../base/integers.ts";
import { siblingModule } from "../../../base/modules.ts";
import { BLOCK_TOKENS } from "../latent-block.ts";
import type { StoreCounts } from "./block-store.ts";
import type { FromThread, StoreSettings, ToThread } from "./messages.ts";

const STORES_WAITING_MAX = 64;

export interface LoadRequest {
  readonly salt: string;
  /** The whole prefix; a ragged end is not looked for. */
  readonly tokens: Int32Array;
  /** The first block wanted: those before it are in memory. */
  readonly start: number;
  readonly budgetMs: number;
  /** Is given the payloads of consecutive blocks from `start` on, each as it comes. */
  readonly take: (payload: Uint8Array, blockIndex: number) => void;
}

export interface StoreRequest {
  readonly salt: string;
  readonly tokens: Int32Array;
  /**
   * A copy of a block's payload, given away; null when it is no longer to be had. Called for those
   * blocks alone that are not on the disk, in order, until the promise of `store` is settled.
   */
  readonly payload: (blockIndex: number) => Uint8Array<ArrayBuffer> | null;
}

interface WaitingStore {
  readonly request: StoreRequest;
  readonly settle: (numStored: number) => void;
}

/** A load that is on its way: what to do with what comes, and when it ends. */
interface RunningLoad {
  readonly take: (payload: Uint8Array) => void;
  readonly settle: () => void;
}

export class DiskTier implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  readonly #loads = new Map<number, RunningLoad>();
  readonly #stores: WaitingStore[] = [];
  /** Answers of the thread to the store that runs. */
  #answer: ((message: FromThread | null) => void) | null = null;
  #isStoring = false;
  #onStored: (() => void) | null = null;
  #numDroppedStores = 0;
  #counts: StoreCounts | null = null;
  #nextId = 0;
  #isOff = false;
  /** Whether a load's time was up and nothing was heard since. */
  #isLate = false;
  readonly #started: Promise<void>;
  #onHeard: () => void = () => {};
  #problem: string | null = null;

  constructor(settings: StoreSettings) {
    this.#worker = new Worker(siblingModule("./thread", import.meta.url), {
      workerData: settings,
    });
    this.#worker.on("message", (message: FromThread) => this.#receive(message));
    this.#worker.on("error", (error) => this.#turnOff(`the disk tier's thread died: ${error}`));
    this.#started = new Promise((resolve) => {
      this.#onHeard = resolve;
    });
    this.#exited = new Promise((resolve) => {
      this.#worker.on("exit", () => {
        this.#turnOff("the disk tier was closed");
        resolve();
      });
    });
  }

  /** Why the tier is off, or null. */
  get problem(): string | null {
    return this.#problem;
  }

  /** Stores that were not begun because too many waited. */
  get numDroppedStores(): number {
    return this.#numDroppedStores;
  }

  /** Wait until the thread has looked through the folder, at most this long. */
  async ready(milliseconds: number): Promise<void> {
    await within(milliseconds, this.#started);
  }

  /** What the store counted when it was last heard of; null before that. */
  get counts(): StoreCounts | null {
    return this.#counts;
  }

  /** Load what can be had within the budget; resolves to the number of blocks that were given. */
  load(request: LoadRequest): Promise<number> {
    const { salt, tokens, start, budgetMs } = request;
    if (this.#isOff || this.#isLate || budgetMs <= 0) return Promise.resolve(0);
    const id = this.#nextId++;
    let numTaken = 0;
    return new Promise((resolve) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.#loads.delete(id);
        resolve(numTaken);
      };
      const timer = setTimeout(() => {
        this.#isLate = true;
        settle();
      }, budgetMs);
      const take = (payload: Uint8Array): void => request.take(payload, start + numTaken++);
      this.#loads.set(id, { take, settle });
      const deadline = Date.now() + budgetMs;
      // A view is sent with its whole buffer: send a copy of its own.
      this.#send({ kind: "load", id, salt, tokens: tokens.slice(), start, deadline });
    });
  }

  /** Bring blocks to the disk, behind; resolves to how many of the prefix are there afterwards. */
  store(request: StoreRequest): Promise<number> {
    if (this.#isOff) return Promise.resolve(0);
    if (this.#stores.length >= STORES_WAITING_MAX) {
      this.#numDroppedStores++;
      return Promise.resolve(0);
    }
    return new Promise((settle) => {
      this.#stores.push({ request, settle });
      if (!this.#isStoring) void this.#runStores();
    });
  }

  /** Wait until what is to be stored is on the disk, at most this long. */
  async settle(milliseconds: number): Promise<void> {
    if (!this.#isStoring) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onStored = resolve;
    await within(milliseconds, promise);
  }

  /** End: stores that wait are given up, the block being written is finished. Idempotent. */
  async close(): Promise<void> {
    if (!this.#isOff) {
      this.#turnOff("the disk tier was closed");
      this.#send({ kind: "close" });
    }
    await this.#exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #runStores(): Promise<void> {
    this.#isStoring = true;
    for (let next = this.#stores.shift(); next !== undefined; next = this.#stores.shift()) {
      next.settle(await this.#runStore(next.request));
    }
    this.#isStoring = false;
    this.#onStored?.();
  }

  async #runStore(request: StoreRequest): Promise<number> {
    const { salt, tokens } = request;
    const plan = await this.#ask({ kind: "plan", salt, tokens: tokens.slice() });
    if (plan?.kind !== "planned") return 0;
    for (const blockIndex of plan.missing) {
      // A copy is made between two steps of the engine, not many in a row.
      await new Promise<void>((resolve) => setImmediate(resolve));
      const payload = this.#isOff ? null : request.payload(blockIndex);
      if (payload === null) return blockIndex;
      const answer = await this.#ask({ kind: "write", blockIndex, payload }, [payload.buffer]);
      if (answer?.kind !== "written" || !answer.isStored) return blockIndex;
    }
    return floorDiv(tokens.length, BLOCK_TOKENS);
  }

  /** Ask the thread something about the running store; null when it died. */
  #ask(message: ToThread, transfer: ArrayBuffer[] = []): Promise<FromThread | null> {
    if (this.#isOff) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#answer = resolve;
      this.#send(message, transfer);
    });
  }

  #send(message: ToThread, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  #receive(message: FromThread): void {
    this.#isLate = false;
    this.#onHeard();
    if (message.kind === "block") this.#loads.get(message.id)?.take(message.payload);
    else if (message.kind === "loadEnd") this.#loads.get(message.id)?.settle();
    else if (message.kind === "counts") this.#counts = message.counts;
    else this.#takeAnswer(message);
  }

  #takeAnswer(message: FromThread | null): void {
    const answer = this.#answer;
    this.#answer = null;
    answer?.(message);
  }

  #turnOff(reason: string): void {
    if (this.#isOff) return;
    this.#isOff = true;
    this.#problem = reason;
    for (const { settle } of [...this.#loads.values()]) settle();
    for (const { settle } of this.#stores.splice(0)) settle(0);
    this.#takeAnswer(null);
    this.#onHeard();
  }
}

/** Wait for a promise, but not longer. */
async function within(milliseconds: number, promise: Promise<void>): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  await Promise.race([promise, late]);
  clearTimeout(timer);
}
