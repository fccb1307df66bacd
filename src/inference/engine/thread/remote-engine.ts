/**
 * @file An engine in a thread of its own, as its user sees it: HTTP stays responsive while a step
 * runs. When the thread dies, what it was doing and what comes after fail with `engine.closed`.
 *
 * A thread that hangs is ended: it is asked for a sign of life now and then, and answers between
 * two steps. What is counted are questions without an answer, not time, so that a machine that
 * slept is not taken for one that hangs.
 */
import type { Worker } from "node:worker_threads";
import { OperationalError } from "../../../base/errors.ts";
import type { Tokenizer } from "../../../tokenizer/tokenizer.ts";
import type {
  Engine,
  EngineDescription,
  EngineEvent,
  EngineMetric,
  EngineRequest,
} from "../api.ts";
import { EventQueue } from "../event-queue.ts";
import type { Failure, FromEngine, ToEngine } from "./messages.ts";

/** What a call gets back until its end. */
type Reply = Extract<FromEngine, { kind: "event" | "embedding" | "metrics" }>;

/** How a thread that hangs is noticed; by feel: no step takes a minute. */
export interface Watch {
  readonly pingMs: number;
  readonly unansweredMax: number;
}

const WATCH: Watch = { pingMs: 5000, unansweredMax: 12 };

/** The engine of `worker`, which runs `hostEngine`, once it is open. */
export async function openRemoteEngine(
  worker: Worker,
  tokenizer: Tokenizer,
  watch: Watch = WATCH,
): Promise<Engine> {
  const { promise, resolve, reject } = Promise.withResolvers<Engine>();
  const first = (message: FromEngine): void => {
    if (message.kind === "open") {
      const engine = new RemoteEngine(worker, tokenizer, message.description);
      engine.watch(watch);
      resolve(engine);
    } else if (message.kind === "notOpened") {
      reject(errorOf(message.failure));
    }
  };
  worker.once("message", first);
  worker.once("error", reject);
  worker.once("exit", () => reject(closedError("its thread ended before it was open")));
  return promise;
}

class RemoteEngine implements Engine {
  readonly description: EngineDescription;
  readonly tokenizer: Tokenizer;
  readonly #worker: Worker;
  readonly #replies = new Map<number, EventQueue<Reply>>();
  readonly #exited: Promise<void>;
  #nextId = 0;
  #problem: string | null = null;
  #numUnanswered = 0;

  constructor(worker: Worker, tokenizer: Tokenizer, description: EngineDescription) {
    this.description = description;
    this.tokenizer = tokenizer;
    this.#worker = worker;
    worker.on("message", (message: FromEngine) => this.#receive(message));
    worker.on("error", (error) => this.#die(`its thread failed: ${error.message}`));
    this.#exited = new Promise((resolve) => {
      worker.once("exit", () => {
        this.#die("its thread has ended");
        resolve();
      });
    });
  }

  /** Ask for signs of life until it dies; end it when they do not come. */
  watch({ pingMs, unansweredMax }: Watch): void {
    const timer = setInterval(() => {
      if (this.#numUnanswered++ < unansweredMax) return this.#post({ kind: "ping" });
      this.#die(`it gave no sign of life for ${(pingMs * unansweredMax) / 1000} s`);
      void this.#worker.terminate();
    }, pingMs);
    timer.unref();
    void this.#exited.then(() => clearInterval(timer));
  }

  async *generate(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    for await (const reply of this.#call((id) => ({ kind: "generate", id, request }), signal)) {
      if (reply.kind === "event") yield reply.event;
    }
  }

  async embed(tokens: Int32Array, tenant: string, signal: AbortSignal): Promise<Float32Array> {
    for await (const reply of this.#call((id) => ({ kind: "embed", id, tokens, tenant }), signal)) {
      if (reply.kind === "embedding") return reply.values;
    }
    signal.throwIfAborted();
    throw closedError("it gave no embedding");
  }

  async metrics(): Promise<readonly EngineMetric[]> {
    for await (const reply of this.#call((id) => ({ kind: "metrics", id }), null)) {
      if (reply.kind === "metrics") return reply.metrics;
    }
    throw closedError("it gave no metrics");
  }

  async close(): Promise<void> {
    if (this.#problem === null) {
      this.#problem = "it was closed";
      this.#post({ kind: "close" });
    }
    await this.#exited;
  }

  /** Send a message and read its replies; leaving early aborts it over there. */
  async *#call(
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

  #receive(message: FromEngine): void {
    this.#numUnanswered = 0;
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

  #post(message: ToEngine): void {
    this.#worker.postMessage(message);
  }

  #die(problem: string): void {
    this.#problem ??= problem;
    for (const replies of this.#replies.values()) replies.fail(closedError(problem));
    this.#replies.clear();
  }
}

function errorOf({ code, message, details }: Failure): OperationalError {
  return new OperationalError(code, message, details);
}

function closedError(problem: string): OperationalError {
  return new OperationalError("engine.closed", `the engine is closed: ${problem}`);
}
