/**
 * @file Calls to an engine that messages lead to: each is sent once and replied to until its end.
 *
 * When the engine has died, calls that wait fail with `engine.closed`, and so do later ones.
 */
import { OperationalError } from "../../../base/errors.ts";
import { errorOf } from "../../../base/failure.ts";
import { EventQueue } from "../event-queue.ts";
import type { FromEngine, ToEngine } from "./messages.ts";

/** What a call gets back until its end. */
export type Reply = Extract<FromEngine, { kind: "event" | "embedding" | "prefix" | "metrics" }>;

export class RemoteCalls {
  readonly #post: (message: ToEngine) => void;
  readonly #replies = new Map<number, EventQueue<Reply>>();
  #nextId = 0;
  #problem: string | null = null;

  constructor(post: (message: ToEngine) => void) {
    this.#post = post;
  }

  /** Why calls fail; null while they do not. */
  get problem(): string | null {
    return this.#problem;
  }

  /** Send a message and read its replies; leaving early aborts it over there. */
  async *call(
    message: (id: number) => ToEngine,
    signal: AbortSignal | null,
  ): AsyncGenerator<Reply> {
    if (this.#problem !== null) throw closedError(this.#problem);
    const id = this.#nextId++;
    const replies = new EventQueue<Reply>();
    const abort = (): void => this.#post({ kind: "abort", id });
    this.#replies.set(id, replies);
    this.#post(message(id));
    if (signal?.aborted === true) abort();
    signal?.addEventListener("abort", abort);
    try {
      yield* replies.read();
    } finally {
      signal?.removeEventListener("abort", abort);
      if (this.#replies.delete(id)) abort();
    }
  }

  receive(message: FromEngine): void {
    if (!("id" in message)) return;
    const replies = this.#replies.get(message.id);
    if (message.kind === "end") {
      this.#replies.delete(message.id);
      replies?.end();
    } else if (message.kind === "failed") {
      replies?.fail(errorOf(message.failure));
    } else {
      replies?.push(message);
    }
  }

  /** No more calls; those that wait are still replied to. */
  refuse(problem: string): void {
    this.#problem ??= problem;
  }

  /** End all calls. */
  fail(problem: string): void {
    this.refuse(problem);
    for (const replies of this.#replies.values()) replies.fail(closedError(problem));
    this.#replies.clear();
  }
}

export function closedError(problem: string): OperationalError {
  return new OperationalError("engine.closed", `the engine is closed: ${problem}`);
}
