/**
 * @file An engine in a thread of its own, as its user sees it: HTTP stays responsive while a step
 * runs. When the thread dies, what it was doing and what comes after fail with `engine.closed`.
 *
 * A thread that hangs is ended: it is asked for a sign of life now and then, answers between two
 * steps, and gives signs by itself in the course of a step (`signsOfLife`), which may take long on
 * slow kernels. What is counted are questions without a sign, not time, so that a machine that
 * slept is not taken for one that hangs.
 */
import { errorOf } from "../../../base/failure.ts";
import type { Tokenizer } from "../../../tokenizer/tokenizer.ts";
import type {
  Engine,
  EngineDescription,
  EngineEvent,
  EngineMetric,
  EngineRequest,
} from "../api.ts";
import type { FromEngine, ToEngine } from "./messages.ts";
import { closedError, RemoteCalls } from "./remote-calls.ts";

/** A thread that runs `hostEngine`, such as a `Worker`. */
export interface EngineThread {
  on(event: "message", listener: (message: FromEngine) => void): unknown;
  on(event: "error", listener: (error: Error) => void): unknown;
  once(event: "error", listener: (error: Error) => void): unknown;
  once(event: "exit", listener: () => void): unknown;
  postMessage(message: ToEngine): void;
  terminate(): Promise<unknown>;
}

/** How a thread that hangs is noticed; by feel: no launch takes a minute. */
export interface Watch {
  readonly pingMs: number;
  readonly unansweredMax: number;
}

const WATCH: Watch = { pingMs: 5000, unansweredMax: 12 };

/** The engine of `worker`, once it is open. */
export async function openRemoteEngine(
  worker: EngineThread,
  tokenizer: Tokenizer,
  watch: Watch = WATCH,
): Promise<Engine> {
  const { promise, resolve, reject } = Promise.withResolvers<Engine>();
  const opened = (message: FromEngine): void => {
    if (message.kind === "open") {
      const engine = new RemoteEngine(worker, tokenizer, message.description);
      engine.watch(watch);
      resolve(engine);
    } else if (message.kind === "notOpened") {
      reject(errorOf(message.failure));
    }
  };
  worker.on("message", opened);
  worker.once("error", reject);
  worker.once("exit", () => reject(closedError("its thread ended before it was open")));
  return promise;
}

class RemoteEngine implements Engine {
  readonly description: EngineDescription;
  readonly tokenizer: Tokenizer;
  readonly #worker: EngineThread;
  readonly #calls: RemoteCalls;
  readonly #exited: Promise<void>;
  #numUnanswered = 0;

  constructor(worker: EngineThread, tokenizer: Tokenizer, description: EngineDescription) {
    this.description = description;
    this.tokenizer = tokenizer;
    this.#worker = worker;
    this.#calls = new RemoteCalls((message) => this.#post(message));
    worker.on("message", (message: FromEngine) => {
      this.#numUnanswered = 0;
      this.#calls.receive(message);
    });
    worker.on("error", (error) => this.#calls.fail(`its thread failed: ${error.message}`));
    this.#exited = new Promise((resolve) => {
      worker.once("exit", () => {
        this.#calls.fail("its thread has ended");
        resolve();
      });
    });
  }

  /** Ask for signs of life until it dies; end it when they do not come. */
  watch({ pingMs, unansweredMax }: Watch): void {
    const timer = setInterval(() => {
      if (this.#numUnanswered++ < unansweredMax) return this.#post({ kind: "ping" });
      this.#calls.fail(`it gave no sign of life for ${(pingMs * unansweredMax) / 1000} s`);
      void this.#worker.terminate();
    }, pingMs);
    timer.unref();
    void this.#exited.then(() => clearInterval(timer));
  }

  async *generate(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    for await (const reply of this.#calls.call(
      (id) => ({ kind: "generate", id, request }),
      signal,
    )) {
      if (reply.kind === "event") yield reply.event;
    }
  }

  async embed(tokens: Int32Array, tenant: string, signal: AbortSignal): Promise<Float32Array> {
    for await (const reply of this.#calls.call(
      (id) => ({ kind: "embed", id, tokens, tenant }),
      signal,
    )) {
      if (reply.kind === "embedding") return reply.values;
    }
    signal.throwIfAborted();
    throw closedError("it gave no embedding");
  }

  async metrics(): Promise<readonly EngineMetric[]> {
    for await (const reply of this.#calls.call((id) => ({ kind: "metrics", id }), null)) {
      if (reply.kind === "metrics") return reply.metrics;
    }
    throw closedError("it gave no metrics");
  }

  async close(): Promise<void> {
    if (this.#calls.problem === null) {
      this.#calls.refuse("it was closed");
      this.#post({ kind: "close" });
    }
    await this.#exited;
  }

  #post(message: ToEngine): void {
    this.#worker.postMessage(message);
  }
}
