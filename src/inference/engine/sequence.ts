/**
 * @file One request within the engine: its tokens, its cache, what it has generated and told.
 *
 *     waiting ─▶ reading its prompt ─▶ decoding ─▶ finished
 *        ▲──────────── preempted ──────────┘
 *
 * `tokens` are all that are known: the prompt and what was generated. The cache holds a beginning
 * of them; the rest, and a draft behind them, are pending. A preempted sequence gives up its cache
 * and nothing else: what it generated is read again like a prompt.
 */
import { assert, OperationalError } from "../../base/errors.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { ConstraintState } from "../constraint/constraint.ts";
import type { LatentCache } from "../latent-cache.ts";
import { Sampler } from "../sampler.ts";
import { TextBuilder } from "../text-builder.ts";
import type {
  EngineEvent,
  EngineRequest,
  EngineUsage,
  FinishReason,
  NearMiss,
  TokenLogProbability,
} from "./api.ts";
import { EventQueue } from "./event-queue.ts";
import { describeToken } from "./log-probabilities.ts";
import { LogitShaper } from "./logit-shaper.ts";
import type { SchedulableSequence } from "./scheduler.ts";

export interface SequenceParts {
  readonly id: number;
  readonly request: EngineRequest;
  readonly cache: LatentCache;
  readonly tokenizer: Tokenizer;
  readonly constraint: ConstraintState | null;
  readonly contextTokens: number;
  /** Milliseconds, of the engine's clock. */
  readonly askedAt: number;
  readonly drafts: boolean;
}

export class Sequence implements SchedulableSequence {
  readonly id: number;
  readonly tenant: string;
  readonly arrival: number;
  readonly request: EngineRequest;
  readonly cache: LatentCache;
  readonly events: EventQueue<EngineEvent> = new EventQueue();
  readonly askedAt: number;
  readonly deadlineAt: number;
  /** Blocks of the cache that the prefix cache refers to as well. */
  readonly sharedWithTree: Set<number> = new Set();
  /** Its first blocks that the prefix cache was told of. */
  numKept = 0;
  /** Tokens of its prompt that were cached anywhere; what is found beyond was read for it. */
  cachedMost: number = Number.POSITIVE_INFINITY;
  /** Tokens of its prompt that the disk gave, in blocks. */
  diskTokens = 0;
  admission: number | null = null;
  firstTokenAt: number | null = null;
  lastTokenAt: number | null = null;
  admittedAt: number | null = null;
  /** The tokens that are guessed to come after `tokens`. */
  readonly #draftTokens: number[] = [];
  /** Shapes the logits behind them. */
  #guessShaper: LogitShaper | null = null;
  /** Whether the MTP module still drafts for it. */
  drafts: boolean;
  isAborted = false;
  /** Final hidden states are added here, if they are what is wanted. */
  hiddenSum: Float64Array | null = null;
  readonly #tokens: number[];
  readonly #tokenizer: Tokenizer;
  readonly #contextTokens: number;
  readonly #sampler: Sampler;
  readonly #shaper: LogitShaper;
  readonly #text: TextBuilder;
  readonly #endTokens: ReadonlySet<number>;
  readonly #promptLogProbabilities: (TokenLogProbability | null)[] = [];
  #isPromptTold = false;
  #newText = "";
  #numGenerated = 0;
  /** Of those, tokens that only repeat the prompt's end. */
  #numRepeating = 0;
  #cachedTokens = 0;
  #nearMiss: NearMiss | null = null;
  #draftedTokens = 0;
  #acceptedTokens = 0;
  #end: FinishReason | null = null;

  /** Refuses what the request may not ask for. */
  constructor(parts: SequenceParts) {
    const { request, tokenizer } = parts;
    this.id = parts.id;
    this.arrival = parts.id;
    this.request = request;
    this.tenant = request.tenant;
    this.cache = parts.cache;
    this.askedAt = parts.askedAt;
    this.deadlineAt = parts.askedAt + (request.deadlineMs ?? Number.POSITIVE_INFINITY);
    this.drafts = parts.drafts;
    this.#tokens = [...request.prompt];
    this.#tokenizer = tokenizer;
    this.#contextTokens = parts.contextTokens;
    this.#sampler = new Sampler(request.sampling, request.seed);
    this.#shaper = new LogitShaper(request, parts.constraint, tokenizer);
    this.#endTokens = new Set(request.endTokens ?? [tokenizer.eosId]);
    this.#text = new TextBuilder(tokenizer, request.stopStrings, (text) => {
      this.#newText += text;
    });
  }

  get tokens(): readonly number[] {
    return this.#tokens;
  }

  get end(): FinishReason | null {
    return this.#end;
  }

  get numPending(): number {
    return this.#tokens.length - this.cache.length + this.#draftTokens.length;
  }

  get isDecoding(): boolean {
    return this.#numGenerated > 0 && this.#tokens.length - this.cache.length === 1;
  }

  countMissing(count: number): number {
    return this.cache.countMissing(count);
  }

  get numOwnBlocks(): number {
    const { blocks, pool } = this.cache;
    return blocks.filter((block) => {
      const others = this.sharedWithTree.has(block) ? 1 : 0;
      return pool.countReferences(block) === 1 + others;
    }).length;
  }

  /** Of the text that was asked to be continued. */
  get #promptTokens(): number {
    return this.request.prompt.length + (this.request.healing?.numTokens ?? 0);
  }

  get usage(): EngineUsage {
    return {
      promptTokens: this.#promptTokens,
      cachedTokens: this.#cachedTokens,
      cachedFromDisk: Math.min(this.diskTokens, this.#cachedTokens),
      nearMiss: this.#nearMiss,
      completionTokens: this.#numGenerated - this.#numRepeating,
      draftedTokens: this.#draftedTokens,
      acceptedTokens: this.#acceptedTokens,
    };
  }

  get draftTokens(): readonly number[] {
    return this.#draftTokens;
  }

  dropDrafts(): void {
    this.#draftTokens.length = 0;
    this.#guessShaper = null;
  }

  /** The next `count` pending tokens; the drafts are the last of all. */
  pendingTokens(count: number): Int32Array {
    const start = this.cache.length;
    const known = this.#tokens.slice(start, start + count);
    return Int32Array.from([...known, ...this.#draftTokens.slice(0, count - known.length)]);
  }

  /** Which logits a pass over `count` pending tokens has to give. */
  wantedLogits(count: number): "none" | "last" | "all" {
    const isPrompt = this.cache.length < this.request.prompt.length;
    if (isPrompt && this.request.promptLogProbabilities && !this.#isPromptTold) return "all";
    const end = this.cache.length + count;
    if (end < this.#tokens.length || this.request.maxTokens === 0) return "none";
    return end > this.#tokens.length ? "all" : "last";
  }

  /** Tell that it runs now; `cachedTokens` of it were found in the prefix cache. */
  start(now: number, cachedTokens: number, nearMiss: NearMiss | null): void {
    if (this.admittedAt !== null) return;
    this.admittedAt = now;
    this.#cachedTokens = cachedTokens;
    this.#nearMiss = nearMiss;
    const promptTokens = this.#promptTokens;
    const queueMs = now - this.askedAt;
    this.events.push({ kind: "started", promptTokens, cachedTokens, nearMiss, queueMs });
  }

  /** Prompt tokens were read: say how far, and how likely each was. */
  noteRead(first: number, logits: Float32Array | null, rowLength: number): void {
    const { prompt } = this.request;
    if (logits !== null && !this.#isPromptTold) this.#notePrompt(first, logits, rowLength);
    const readTokens = Math.min(this.cache.length, prompt.length);
    if (readTokens < prompt.length) {
      this.events.push({ kind: "progress", readTokens, promptTokens: prompt.length });
      return;
    }
    if (this.request.promptLogProbabilities && !this.#isPromptTold) {
      this.#isPromptTold = true;
      this.events.push({ kind: "prompt", logProbabilities: this.#promptLogProbabilities });
    }
    if (this.request.maxTokens === 0) this.#end = "length";
  }

  #notePrompt(first: number, logits: Float32Array, rowLength: number): void {
    const { prompt, topLogProbabilities } = this.request;
    const told = this.#promptLogProbabilities;
    if (told.length === 0) told.push(null);
    const numRows = logits.length / rowLength;
    for (let row = 0; row < numRows && first + row + 1 < prompt.length; row++) {
      if (first + row + 1 !== told.length) continue;
      const own = logits.subarray(row * rowLength, row * rowLength + this.#tokenizer.vocabSize);
      told.push(describeToken(own, prompt[first + row + 1]!, topLogProbabilities ?? 0));
    }
  }

  /**
   * Choose tokens from rows of logits: the first row follows `tokens`, the others the drafts in
   * turn, as long as these stand. Returns how many were chosen; what was ended by them is in `end`.
   */
  choose(rows: readonly Float32Array[]): number {
    const tokens: number[] = [];
    const told: TokenLogProbability[] = [];
    const drafted = this.#draftTokens.slice(0, rows.length - 1);
    this.dropDrafts();
    this.#draftedTokens += drafted.length;
    let count = 0;
    for (const [index, row] of rows.entries()) {
      const logits = row.subarray(0, this.#tokenizer.vocabSize);
      const token = this.#sampler.sample(this.#shaper.shape(logits));
      count++;
      this.#push(token, tokens);
      if (tokens.at(-1) === token && this.request.topLogProbabilities !== null) {
        told.push(describeToken(logits, token, this.request.topLogProbabilities));
      }
      if (token !== drafted[index]) break;
      this.#acceptedTokens++;
      if (this.#end !== null) break;
    }
    this.#tell(tokens, told);
    return count;
  }

  #push(token: number, told: number[]): void {
    this.#numGenerated++;
    const numBytes = this.#tokenizer.countBytes(token);
    const repeated = this.#shaper.accept(token, numBytes);
    if (this.#endTokens.has(token)) {
      this.#end = "end";
      return;
    }
    this.#tokens.push(token);
    if (repeated > 0 && repeated === numBytes) this.#numRepeating++;
    else {
      told.push(token);
      this.#text.push(token, repeated);
    }
    if (this.#text.stop !== null) this.#end = "stop";
    else if (this.#shaper.isComplete) this.#end = "end";
    else if (this.usage.completionTokens >= this.request.maxTokens) this.#end = "length";
    else if (this.#tokens.length >= this.#contextTokens) this.#end = "context";
  }

  #tell(tokens: readonly number[], told: readonly TokenLogProbability[]): void {
    const text = this.#newText;
    this.#newText = "";
    if (tokens.length === 0 && text === "") return;
    const logProbabilities = this.request.topLogProbabilities === null ? null : told;
    this.events.push({ kind: "tokens", text, tokens, logProbabilities });
  }

  /**
   * Guess one token more, as it would be chosen from these logits behind the guesses so far. False
   * if no other should be guessed behind it.
   */
  guess(logits: Float32Array): boolean {
    const numBefore = this.#draftTokens.length;
    if (this.#tokens.length + numBefore + 1 >= this.#contextTokens) return false;
    if (this.#numGenerated + numBefore + 1 >= this.request.maxTokens) return false;
    const shaper = this.#guessShaper ?? this.#shaper;
    const shaped = shaper.shape(logits.subarray(0, this.#tokenizer.vocabSize));
    let token: number;
    try {
      token = this.#sampler.preview(shaped, numBefore);
    } catch (failure) {
      // A draft that cannot be used is none: a module that was never trained may say NaN.
      if (failure instanceof OperationalError) return false;
      throw failure;
    }
    this.#draftTokens.push(token);
    return !this.#endTokens.has(token);
  }

  /** Get ready to guess behind the last guess; false if nothing can come there. */
  lookBehindGuess(): boolean {
    const guess = this.#draftTokens.at(-1);
    if (guess === undefined) return false;
    this.#guessShaper ??= this.#shaper.fork();
    if (this.#guessShaper === null) return false;
    try {
      this.#guessShaper.accept(guess, 0);
    } catch (failure) {
      // What only a guess leads to must not fail the request.
      if (failure instanceof OperationalError) return false;
      throw failure;
    }
    return !this.#guessShaper.isComplete;
  }

  /** Take the rest of the text out, and end the events. */
  finish(reason: FinishReason): void {
    assert(this.cache.blocks.length === 0, "a finished sequence holds no blocks");
    if (this.#text.stop === null) this.#text.finish();
    const { stop } = this.#text;
    this.#tell([], []);
    const why = stop === null ? reason : "stop";
    this.events.push({ kind: "finished", reason: why, stop, usage: this.usage });
    this.events.end();
  }
}
