/**
 * @file Threads that render a chat template, with limits on time, memory and output.
 *
 * A thread renders one conversation at a time and is ended when that takes too long, so a slow one
 * costs its own thread and nobody else's time. When all threads are busy, a rendering waits for as
 * long as one may take, and is then refused as a server that is full refuses.
 */
import { Worker } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { siblingModule } from "../../base/modules.ts";

export interface TemplateLimits {
  /** Of one rendering, and of waiting for it to begin. */
  readonly timeMs: number;
  readonly outputCharacters: number;
  /** Renderings at once. */
  readonly threads: number;
}

const THREAD_MEGABYTES = 256;

export type Variables = Readonly<Record<string, unknown>>;

/** What a thread answers. */
export type Rendered = { readonly text: string } | { readonly problem: string };

/** A thread, and what ends its rendering. */
interface Renderer {
  readonly worker: Worker;
  settle: ((outcome: Rendered | OperationalError) => void) | undefined;
}

interface Waiting {
  readonly begin: (renderer: Renderer) => void;
  readonly fail: (error: OperationalError) => void;
}

export class TemplateThreads {
  readonly #template: string;
  readonly #limits: TemplateLimits;
  readonly #all = new Set<Renderer>();
  readonly #idle: Renderer[] = [];
  readonly #waiting = new Set<Waiting>();

  constructor(template: string, limits: TemplateLimits) {
    this.#template = template;
    this.#limits = limits;
  }

  async render(variables: Variables): Promise<string> {
    const renderer = await this.#acquire();
    const outcome = await this.#renderBy(renderer, variables);
    if (outcome instanceof OperationalError) {
      this.#drop(renderer);
      throw outcome;
    }
    this.#release(renderer);
    if ("text" in outcome) return outcome.text;
    throw templateError(outcome.problem);
  }

  /** What runs or waits fails; a later rendering starts threads again. */
  async close(): Promise<void> {
    const error = closedError();
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const { fail } of waiting) fail(error);
    const ended = [...this.#all].map(({ worker }) => worker.terminate());
    for (const { settle } of this.#all) settle?.(error);
    for (const renderer of this.#all) this.#drop(renderer);
    await Promise.all(ended);
  }

  async #acquire(): Promise<Renderer> {
    const renderer = this.#idle.pop();
    if (renderer !== undefined) return renderer;
    if (this.#all.size < this.#limits.threads) return this.#start();
    const { promise, resolve, reject } = Promise.withResolvers<Renderer>();
    const waiting = { begin: resolve, fail: reject };
    const timer = setTimeout(() => {
      this.#waiting.delete(waiting);
      const message = "all threads that render chat templates are busy; come again";
      reject(new OperationalError("serving.busy", message));
    }, this.#limits.timeMs);
    this.#waiting.add(waiting);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }

  #renderBy(renderer: Renderer, variables: Variables): Promise<Rendered | OperationalError> {
    const { timeMs } = this.#limits;
    return new Promise((resolve) => {
      const late = (): void => renderer.settle?.(templateError(`took longer than ${timeMs} ms`));
      const timer = setTimeout(late, timeMs);
      renderer.settle = (outcome) => {
        clearTimeout(timer);
        renderer.settle = undefined;
        resolve(outcome);
      };
      renderer.worker.postMessage(variables);
      if (!this.#all.has(renderer)) renderer.settle(closedError());
    });
  }

  #start(): Renderer {
    const worker = new Worker(siblingModule("./template-worker", import.meta.url), {
      workerData: { template: this.#template, charactersMax: this.#limits.outputCharacters },
      resourceLimits: { maxOldGenerationSizeMb: THREAD_MEGABYTES },
    });
    worker.unref();
    const renderer: Renderer = { worker, settle: undefined };
    worker.on("message", (outcome: Rendered) => renderer.settle?.(outcome));
    worker.on("error", () => {
      const lost = templateError("needed more memory than it may have");
      if (renderer.settle !== undefined) renderer.settle(lost);
      else this.#drop(renderer);
    });
    this.#all.add(renderer);
    return renderer;
  }

  #release(renderer: Renderer): void {
    const [next] = this.#waiting;
    if (next === undefined) this.#idle.push(renderer);
    else this.#hand(next, renderer);
  }

  /** The thread is lost; whoever waits gets a new one. */
  #drop(renderer: Renderer): void {
    if (!this.#all.delete(renderer)) return;
    void renderer.worker.terminate();
    const at = this.#idle.indexOf(renderer);
    if (at >= 0) this.#idle.splice(at, 1);
    const [next] = this.#waiting;
    if (next !== undefined) this.#hand(next, this.#start());
  }

  #hand(next: Waiting, renderer: Renderer): void {
    this.#waiting.delete(next);
    next.begin(renderer);
  }
}

function closedError(): OperationalError {
  return new OperationalError("engine.closed", "the model is being unloaded");
}

function templateError(problem: string): OperationalError {
  return new OperationalError(
    "serving.invalid",
    `messages cannot be put into this model's chat template, which ${problem}`,
    { param: "messages" },
  );
}
