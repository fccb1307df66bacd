/**
 * @file An engine in this thread: many requests over one decoder, a step at a time.
 *
 * Requests are checked, their constraints compiled, and queued; engine-core.ts runs them. The event
 * loop has a turn between steps, so an abort ends its request within one. A failure of a step
 * itself ends the engine and everything in it, and is thrown where nobody catches it: in a thread
 * of its own that ends the thread, which its user notices.
 */
import { OperationalError } from "../../base/errors.ts";
import { LATENT_BLOCK_TOKENS } from "../../kernels/latent-attention/contract.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Decoder } from "../decoder.ts";
import { nextTurn } from "../session.ts";
import type {
  Engine,
  EngineDescription,
  EngineEvent,
  EngineMetric,
  EngineRequest,
  PrefixPart,
  PrefixReader,
  PrefixRequest,
} from "./api.ts";
import { checkRequest } from "./check-request.ts";
import { DraftPolicy } from "./draft-policy.ts";
import { EngineCore, type StepOptions } from "./engine-core.ts";
import { mayWait } from "./fair-shares.ts";
import { Sequence } from "./sequence.ts";
import { ConstraintCompiler } from "./thread/constraint-compiler.ts";

export interface EngineOptions extends StepOptions {
  readonly modelHash: string;
  /** Requests that may wait. */
  readonly queueMax?: number;
}

const QUEUE_MAX = 256;
const RETRY_AFTER_MS = 1000;

export class LocalEngine implements Engine, PrefixReader {
  readonly description: EngineDescription;
  readonly tokenizer: Tokenizer;
  readonly #decoder: Decoder;
  readonly #options: EngineOptions;
  readonly #core: EngineCore;
  readonly #constraints: ConstraintCompiler;
  readonly #policy = new DraftPolicy();
  readonly #onClose: () => Promise<void>;
  #nextId = 0;
  #isClosed = false;
  #wake: () => void = () => {};
  readonly #loop: Promise<void>;

  /** `onClose` frees what the decoder runs on. */
  constructor(
    decoder: Decoder,
    tokenizer: Tokenizer,
    options: EngineOptions,
    onClose: () => Promise<void> = async () => {},
  ) {
    const { config } = decoder.model;
    const cacheTokens = decoder.blocks.numBlocks * LATENT_BLOCK_TOKENS;
    this.description = {
      modelHash: options.modelHash,
      contextTokens: Math.min(config.maxPositionEmbeddings, cacheTokens),
      vocabSize: tokenizer.vocabSize,
      hiddenDim: config.hiddenDim,
      canDraft: config.numMtpModules > 0,
      cacheTokens,
    };
    this.tokenizer = tokenizer;
    this.#decoder = decoder;
    this.#options = options;
    this.#onClose = onClose;
    this.#core = new EngineCore(decoder, this.#policy, options);
    this.#constraints = new ConstraintCompiler(tokenizer);
    this.#loop = this.#run();
  }

  async *generate(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    checkRequest(request, this.description);
    const sequence = await this.#open(request, signal);
    await this.#core.prefixes.fetch(sequence, signal);
    const abort = this.#enter(sequence, signal);
    try {
      yield* sequence.events.read();
    } finally {
      signal.removeEventListener("abort", abort);
      abort();
    }
  }

  async embed(tokens: Int32Array, tenant: string, signal: AbortSignal): Promise<Float32Array> {
    const request = readingRequest(tokens, tenant, false);
    checkRequest(request, this.description);
    const sequence = await this.#open(request, signal);
    const sum = new Float64Array(this.description.hiddenDim);
    sequence.hiddenSum = sum;
    const abort = this.#enter(sequence, signal);
    try {
      for await (const event of sequence.events.read()) {
        if (event.kind === "finished") signal.throwIfAborted();
      }
    } finally {
      signal.removeEventListener("abort", abort);
    }
    return Float32Array.from(sum, (value) => value / tokens.length);
  }

  async *readPrefix(asked: PrefixRequest, signal: AbortSignal): AsyncGenerator<PrefixPart> {
    const { tokens, tenant, start, drafts } = asked;
    let cachedTokens = 0;
    for await (const event of this.generate(readingRequest(tokens, tenant, drafts), signal)) {
      if (event.kind === "finished") cachedTokens = event.usage.cachedTokens;
    }
    yield { kind: "read", cachedTokens };
    for (let blockIndex = start; !signal.aborted; blockIndex++) {
      const payload = this.#core.prefixes.copy(tenant, tokens, blockIndex);
      if (payload === null) return;
      yield { kind: "block", blockIndex, payload };
      // Steps for others go on in between.
      await nextTurn();
    }
  }

  async metrics(): Promise<readonly EngineMetric[]> {
    return this.#core.describe();
  }

  /** When the engine takes no more steps: it was closed; or throws what it failed by. */
  get ended(): Promise<void> {
    return this.#loop;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return this.#loop;
    this.#isClosed = true;
    this.#wake();
    await this.#loop;
    await this.#constraints.close();
    await this.#onClose();
  }

  /** Assert what must hold between two steps. */
  checkIntegrity(): void {
    this.#core.checkIntegrity();
  }

  #refuseIfFull(tenant: string): void {
    if (this.#isClosed) {
      throw new OperationalError("engine.closed", "the engine was closed; start it again");
    }
    const most = this.#options.queueMax ?? QUEUE_MAX;
    const { waitingTenants } = this.#core;
    if (mayWait(tenant, waitingTenants, most)) return;
    throw new OperationalError(
      "engine.busy",
      `${waitingTenants.length} requests wait already, at most ${most} may; ask again later`,
      { retryAfterMs: RETRY_AFTER_MS },
    );
  }

  async #open(request: EngineRequest, signal: AbortSignal): Promise<Sequence> {
    this.#refuseIfFull(request.tenant);
    const askedAt = performance.now();
    const endToken = request.endTokens?.[0] ?? this.tokenizer.eosId;
    const constraint =
      request.constraint === null
        ? null
        : (await this.#constraints.compile(request.constraint, signal)).start(endToken);
    const drafting = this.#options.drafting ?? "auto";
    const { canDraft, contextTokens } = this.description;
    const wanted = canDraft && request.draft === "auto" && drafting !== "never";
    const numStreams = this.#core.numSequences + 1;
    return new Sequence({
      id: this.#nextId++,
      request,
      cache: this.#decoder.openCache(),
      tokenizer: this.tokenizer,
      constraint,
      contextTokens,
      askedAt,
      drafts: wanted && (drafting === "always" || this.#policy.admits(numStreams)),
    });
  }

  /** Queue a sequence; returns what aborts it, which listens to the signal. */
  #enter(sequence: Sequence, signal: AbortSignal): () => void {
    // While the constraint was compiled the queue may have filled.
    this.#refuseIfFull(sequence.tenant);
    const abort = (): void => {
      sequence.isAborted = true;
      this.#wake();
    };
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort);
    this.#core.enter(sequence);
    this.#wake();
    return abort;
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        await nextTurn();
        if (this.#isClosed) break;
        if (!this.#core.isIdle) this.#core.step();
        else await this.#sleep();
      }
      const closed = new OperationalError("engine.closed", "the engine was closed");
      this.#core.endAll(closed);
      await this.#core.prefixes.close();
    } catch (failure) {
      this.#isClosed = true;
      const message = "the engine has failed; see its log";
      const died = new OperationalError("engine.closed", message, {}, failure);
      this.#core.endAll(died);
      throw failure;
    }
  }

  #sleep(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (this.#isClosed || !this.#core.isIdle) resolve();
    });
  }
}

/** A request whose prompt is only read. */
function readingRequest(prompt: Int32Array, tenant: string, drafts: boolean): EngineRequest {
  return {
    ...{ prompt, maxTokens: 0, adjustments: null, seed: 0, stopStrings: [], tenant },
    sampling: { temperature: 0, topK: 0, topP: 1, minP: 0 },
    ...{ endTokens: null, topLogProbabilities: null, promptLogProbabilities: false },
    ...{ constraint: null, deadlineMs: null, draft: drafts ? "auto" : "off" },
  };
}
