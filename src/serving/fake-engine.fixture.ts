/**
 * @file An engine that says what a test wants, token by token, and remembers what it was asked.
 *
 * It keeps the interface's promises (whole characters, stop strings, end tokens, lengths, aborts,
 * order of events) without a model, so that serving can be tested to the letter.
 */
import { OperationalError } from "../base/errors.ts";
import type {
  Engine,
  EngineEvent,
  EngineRequest,
  FinishReason,
  TokenLogProbability,
} from "../inference/engine/api.ts";
import { StopScanner } from "../inference/stop.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export interface FakeOptions {
  readonly tokenizer: Tokenizer;
  /** What is said to a request; markers in it become added tokens. */
  readonly says: (request: EngineRequest) => string;
  readonly contextTokens?: number;
  /** Requests that run at once; more are refused. */
  readonly requestsMax?: number;
  /** Awaited before every token. */
  readonly beforeToken?: (request: EngineRequest, index: number) => Promise<void> | void;
}

export class FakeEngine implements Engine {
  readonly tokenizer: Tokenizer;
  readonly description: Engine["description"];
  readonly requests: EngineRequest[] = [];
  /** Requests that run now; and how many ended because their client left. */
  numRunning = 0;
  numAborted = 0;
  isClosed = false;
  readonly #options: FakeOptions;

  constructor(options: FakeOptions) {
    const { tokenizer, contextTokens = 2048 } = options;
    this.#options = options;
    this.tokenizer = tokenizer;
    this.description = {
      modelHash: "fake",
      contextTokens,
      vocabSize: tokenizer.vocabSize,
      hiddenDim: 4,
      canDraft: false,
      cacheTokens: contextTokens,
    };
  }

  async *generate(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    if (this.isClosed) throw new OperationalError("engine.closed", "the engine is closed");
    if (this.numRunning >= (this.#options.requestsMax ?? Infinity)) {
      throw new OperationalError("engine.busy", "the queue is full", { retryAfterMs: 1500 });
    }
    this.requests.push(request);
    this.numRunning++;
    let isOver = false;
    try {
      const promptTokens = request.prompt.length;
      yield { kind: "started", promptTokens, cachedTokens: 0, nearMiss: null, queueMs: 0 };
      if (request.promptLogProbabilities) {
        const entries = Array.from(request.prompt, (token) => this.#probability(token, request));
        yield { kind: "prompt", logProbabilities: [null, ...entries.slice(1)] };
      }
      yield* this.#answer(request, signal);
      isOver = true;
    } finally {
      this.numRunning--;
      if (!isOver || signal.aborted) this.numAborted++;
    }
  }

  async *#answer(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    const { tokenizer } = this;
    const said = tokenizer.encode(this.#options.says(request), { allowAddedTokens: true });
    const ends = request.endTokens ?? [tokenizer.eosId];
    const decoder = tokenizer.decoder({ skipSpecialTokens: true });
    const scanner = new StopScanner(request.stopStrings);
    let count = 0;
    const finished = (reason: FinishReason, stop: string | null = null): EngineEvent => ({
      kind: "finished",
      reason,
      stop,
      usage: {
        promptTokens: request.prompt.length,
        cachedTokens: 0,
        cachedFromDisk: 0,
        nearMiss: null,
        completionTokens: count,
        draftedTokens: 0,
        acceptedTokens: 0,
      },
    });
    for (const token of [...said, ends[0]!]) {
      if (count === request.maxTokens) return yield finished("length");
      await this.#options.beforeToken?.(request, count);
      await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted) return yield finished("aborted");
      count++;
      if (ends.includes(token)) break;
      const { text, stop } = scanner.push(decoder.push(token));
      const entry = this.#probability(token, request);
      const logProbabilities = request.topLogProbabilities === null ? null : [entry];
      yield { kind: "tokens", text, tokens: [token], logProbabilities };
      if (stop !== null) return yield finished("stop", stop);
    }
    const rest = scanner.push(decoder.end()).text + scanner.end();
    if (rest !== "") yield { kind: "tokens", text: rest, tokens: [], logProbabilities: null };
    yield finished("end");
  }

  #probability(token: number, { topLogProbabilities }: EngineRequest): TokenLogProbability {
    const top = Array.from({ length: topLogProbabilities ?? 0 }, (_, index) => ({
      token: (token + index) % this.tokenizer.vocabSize,
      logProbability: -0.5 - index,
    }));
    return { token, logProbability: -0.5, top };
  }

  async embed(tokens: Int32Array): Promise<Float32Array> {
    return Float32Array.of(tokens.length, 1, 2, 2);
  }

  async metrics(): Promise<[]> {
    return [];
  }

  async close(): Promise<void> {
    this.isClosed = true;
  }
}
