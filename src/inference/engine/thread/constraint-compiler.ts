/**
 * @file Constraints compiled off the engine's thread, within a time limit, and kept for the next
 * request that has the same.
 *
 * A schema is untrusted: a thread of its own compiles it and is ended when it takes too long. At
 * most four do so at once; others wait, no longer than one may take. Constraints are kept up to a
 * number and to a size of what they remember together; the least recently used goes first.
 */
import { Worker } from "node:worker_threads";
import { OperationalError } from "../../../base/errors.ts";
import { errorOf, type Failure } from "../../../base/failure.ts";
import { siblingModule } from "../../../base/modules.ts";
import type { Tokenizer } from "../../../tokenizer/tokenizer.ts";
import { Constraint } from "../../constraint/constraint.ts";
import type { Network } from "../../constraint/network.ts";
import { TokenTrie } from "../../constraint/token-trie.ts";
import type { ConstraintSpec } from "../api.ts";

const KEPT_MAX = 64;
const KEPT_BYTES_MAX = 64 * 2 ** 20;
const TIME_LIMIT_MS = 5000;
const THREADS_MAX = 4;

/** What the thread answers. */
export type CompileAnswer = { readonly network: Network } | { readonly failure: Failure };

export class ConstraintCompiler {
  readonly #tokenizer: Tokenizer;
  readonly #keptMax: number;
  readonly #kept = new Map<string, Constraint>();
  readonly #workers = new Set<Worker>();
  readonly #waiting = new Set<() => void>();
  #numThreads = 0;
  #trie: TokenTrie | null = null;

  constructor(tokenizer: Tokenizer, keptMax: number = KEPT_MAX) {
    this.#tokenizer = tokenizer;
    this.#keptMax = keptMax;
  }

  async compile(spec: ConstraintSpec, signal: AbortSignal): Promise<Constraint> {
    const key = JSON.stringify(spec);
    let constraint = this.#kept.get(key);
    if (constraint === undefined) {
      const network = await this.#inTurn(() => this.#compileApart(spec, signal));
      this.#trie ??= new TokenTrie(this.#tokenizer.vocabulary.tokenBytes);
      constraint = new Constraint(network, this.#trie);
    }
    this.#kept.delete(key);
    this.#kept.set(key, constraint);
    this.#forgetOldest();
    return constraint;
  }

  get numKept(): number {
    return this.#kept.size;
  }

  #forgetOldest(): void {
    let bytes = 0;
    for (const { heldBytes } of this.#kept.values()) bytes += heldBytes;
    for (const [key, { heldBytes }] of this.#kept) {
      const isTooMuch = this.#kept.size > this.#keptMax || bytes > KEPT_BYTES_MAX;
      if (!isTooMuch || this.#kept.size === 1) return;
      this.#kept.delete(key);
      bytes -= heldBytes;
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#workers].map((worker) => worker.terminate()));
  }

  /** Runs `compile` when there is a thread for it; refuses it when none becomes free in time. */
  async #inTurn(compile: () => Promise<Network>): Promise<Network> {
    if (this.#numThreads < THREADS_MAX) this.#numThreads++;
    else await this.#waitForThread();
    try {
      return await compile();
    } finally {
      const [next] = this.#waiting;
      if (next === undefined) this.#numThreads--;
      else {
        this.#waiting.delete(next);
        next();
      }
    }
  }

  #waitForThread(): Promise<void> {
    return new Promise((resolve, reject) => {
      const begin = (): void => {
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(begin);
        const message = "all threads that compile constraints are busy; ask again later";
        reject(new OperationalError("engine.busy", message, { retryAfterMs: TIME_LIMIT_MS }));
      }, TIME_LIMIT_MS);
      this.#waiting.add(begin);
    });
  }

  async #compileApart(spec: ConstraintSpec, signal: AbortSignal): Promise<Network> {
    const url = siblingModule("./constraint-thread", import.meta.url);
    const worker = new Worker(url, { workerData: spec });
    this.#workers.add(worker);
    const { promise, resolve, reject } = Promise.withResolvers<CompileAnswer>();
    const giveUp = (why: string): void =>
      reject(new OperationalError("constraint.time", `the constraint was not compiled: ${why}`));
    const onAbort = (): void => giveUp("the request was aborted");
    const timer = setTimeout(giveUp, TIME_LIMIT_MS, `it took more than ${TIME_LIMIT_MS} ms`);
    worker.once("message", resolve);
    worker.once("error", (error) => giveUp(error.message));
    worker.once("exit", () => giveUp("its thread ended"));
    signal.addEventListener("abort", onAbort);
    try {
      if (signal.aborted) onAbort();
      const answer = await promise;
      if ("network" in answer) return answer.network;
      throw errorOf(answer.failure);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      this.#workers.delete(worker);
      await worker.terminate();
    }
  }
}
