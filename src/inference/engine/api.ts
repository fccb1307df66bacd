/**
 * @file What an inference engine is to those who serve it: requests in, streams of events out.
 *
 * Types only. The same interface stands before an engine in this thread and one in a worker; every
 * value here can be copied between threads. One prompt gives one completion: several choices are
 * several requests, whose common prompt is read once (prefix cache). Whatever else runs, a request
 * gives the same tokens: alone, batched, from the cache, drafted or not.
 *
 * Refused by throwing an OperationalError from the first step of the iteration
 *   engine.busy        the queue is full; `details.retryAfterMs` says when to come again
 *   engine.context     the prompt leaves no room in the context
 *   engine.deadline    the deadline passed, in the queue or while generating
 *   engine.closed      the engine was closed or has died
 *   inference.…        an option is out of its range (token, sampling, stop, length, prompt)
 *   constraint.…       the schema or the pattern cannot be honoured
 */
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Healing } from "../healing.ts";
import type { SamplingOptions } from "../sampler.ts";

/** What is added to the logits before a token is chosen. Reported probabilities do not change. */
export interface LogitAdjustments {
  /** Added to a token's logit, −100 to 100. */
  readonly bias: readonly (readonly [token: number, bias: number])[];
  /** Taken from the logit of every token generated before, −2 to 2. */
  readonly presencePenalty: number;
  /** Taken from the logit as often as the token was generated before, −2 to 2. */
  readonly frequencyPenalty: number;
}

/**
 * What the whole generated text must match, from its first token to the end token. Reasoning that
 * comes before is a request of its own: what it read stays in the prefix cache.
 */
export type ConstraintSpec =
  /** A JSON value that a JSON Schema accepts. */
  | { readonly kind: "jsonSchema"; readonly schema: unknown }
  /** Any JSON object. */
  | { readonly kind: "json" }
  /** A regular expression that matches the whole text. */
  | { readonly kind: "regex"; readonly pattern: string };

export interface EngineRequest {
  /** At least one token; nothing is added to it. */
  readonly prompt: Int32Array;
  /** The most tokens to generate, the end token included. 0: the prompt is only read. */
  readonly maxTokens: number;
  readonly sampling: SamplingOptions;
  readonly adjustments: LogitAdjustments | null;
  /** A whole number >= 0. The same request with the same seed gives the same tokens. */
  readonly seed: number;
  /** Neither these nor what follows is given out. */
  readonly stopStrings: readonly string[];
  /** Tokens that end the text, and are neither text nor in `tokens`; null: the tokenizer's end. */
  readonly endTokens: readonly number[] | null;
  /** How many alternatives are reported with each token; 0: its own alone; null: nothing. */
  readonly topLogProbabilities: number | null;
  /** Also report the prompt's tokens. They are then read anew, not taken from the cache. */
  readonly promptLogProbabilities: boolean;
  readonly constraint: ConstraintSpec | null;
  /**
   * The end of the prompt's text that `prompt` lacks (healing.ts): generated first, and neither
   * given out nor counted. Its tokens count as the prompt's. Not together with a constraint, nor
   * where the prompt is only read.
   */
  readonly healing?: Healing | null;
  /**
   * Who asks: `ACCOUNT` or `ACCOUNT/USER`. Cached prefixes are shared within a tenant, never
   * between two. Accounts that wait share the engine evenly, however many requests and users each
   * has; the users of an account share what it gets.
   */
  readonly tenant: string;
  /** Milliseconds from now; null: as long as it takes. */
  readonly deadlineMs: number | null;
  /** Whether the MTP module may draft: "auto" as long as it pays. Never changes a token. */
  readonly draft: "auto" | "off";
}

export interface TokenLogProbability {
  readonly token: number;
  /** ln of the model's own probability: temperature 1, nothing filtered or adjusted. */
  readonly logProbability: number;
  /** The likeliest tokens, the likeliest first; as many as were asked for. */
  readonly top: readonly { readonly token: number; readonly logProbability: number }[];
}

/** Where a prompt left what was cached, when it came close. */
export interface NearMiss {
  /** Tokens shared with the nearest cached sequence. */
  readonly position: number;
  readonly expected: number;
  readonly given: number;
}

export interface EngineUsage {
  readonly promptTokens: number;
  /** Of the prompt, those that were not read again. */
  readonly cachedTokens: number;
  /** Of those, the ones that memory lacked and the disk had. */
  readonly cachedFromDisk: number;
  readonly nearMiss: NearMiss | null;
  /** Generated, the end token included, tokens that only repeat the prompt left out. */
  readonly completionTokens: number;
  /** Tokens that the MTP module proposed, and those of them that stood. */
  readonly draftedTokens: number;
  readonly acceptedTokens: number;
}

/**
 * end: an end token; stop: a stop string; length: maxTokens; context: the context is full;
 * aborted: the signal.
 */
export type FinishReason = "end" | "stop" | "length" | "context" | "aborted";

/** Events of one request, in this order: started, progress*, prompt?, tokens*, finished. */
export type EngineEvent =
  | {
      readonly kind: "started";
      readonly promptTokens: number;
      readonly cachedTokens: number;
      readonly nearMiss: NearMiss | null;
      /** Time in the queue. */
      readonly queueMs: number;
    }
  /** A part of a long prompt has been read; comes again when a preempted request is read anew. */
  | { readonly kind: "progress"; readonly readTokens: number; readonly promptTokens: number }
  /** If asked for: of the prompt's tokens in order, the first being null. */
  | { readonly kind: "prompt"; readonly logProbabilities: readonly (TokenLogProbability | null)[] }
  | {
      readonly kind: "tokens";
      /**
       * What can be given out now: whole characters, nothing that may become a stop string. So it
       * may lag behind `tokens`, and be empty.
       */
      readonly text: string;
      readonly tokens: readonly number[];
      /** One a token, if asked for. */
      readonly logProbabilities: readonly TokenLogProbability[] | null;
    }
  | {
      readonly kind: "finished";
      readonly reason: FinishReason;
      /** The stop string, if that is the reason. */
      readonly stop: string | null;
      readonly usage: EngineUsage;
    };

/** A prompt whose latent blocks another engine wants. */
export interface PrefixRequest {
  /** The blocks' tokens; with one token more the MTP module can read the last of them too. */
  readonly tokens: Int32Array;
  readonly tenant: string;
  /** The first block that is wanted. */
  readonly start: number;
  /** Whether the MTP module's latents are wanted. */
  readonly drafts: boolean;
}

export type PrefixPart =
  /** The prompt has been read; so much of it was cached. Comes first. */
  | { readonly kind: "read"; readonly cachedTokens: number }
  /** What `LatentBlocks.read` gives of a block. */
  | {
      readonly kind: "block";
      readonly blockIndex: number;
      readonly payload: Uint8Array<ArrayBuffer>;
    };

/** An engine in the role of prefill: it reads prompts and gives their latents away. */
export interface PrefixReader {
  /** The whole blocks of a prompt, in order; fewer when memory is too short to keep them. */
  readPrefix(request: PrefixRequest, signal: AbortSignal): AsyncIterable<PrefixPart>;
}

export interface EngineDescription {
  /** A digest of weights, configuration and tokenizer: what cached prefixes belong to. */
  readonly modelHash: string;
  /** Tokens of prompt and completion together. */
  readonly contextTokens: number;
  readonly vocabSize: number;
  /** Width of what `embed` returns. */
  readonly hiddenDim: number;
  /** Whether the model has an MTP module to draft with. */
  readonly canDraft: boolean;
  /** Positions that the latent cache holds, over all requests. */
  readonly cacheTokens: number;
}

/** A metric in Prometheus' terms, its name without a prefix: `num_requests_running`. */
export type EngineMetric = {
  readonly name: string;
  readonly help: string;
  /** From closed sets: names of layers, reasons, tiers; nothing that a client chose. */
  readonly labels: Readonly<Record<string, string>>;
} & (
  | { readonly kind: "counter" | "gauge"; readonly value: number }
  | {
      readonly kind: "histogram";
      /** Observations at most `upTo`, the last bucket being Infinity. */
      readonly buckets: readonly { readonly upTo: number; readonly count: number }[];
      readonly sum: number;
    }
);

export interface Engine {
  readonly description: EngineDescription;
  /** In the caller's thread. */
  readonly tokenizer: Tokenizer;
  /**
   * Run a request; it is queued at the first step of the iteration. Aborting ends it within one
   * step of the engine with reason "aborted"; leaving the iteration does the same.
   */
  generate(request: EngineRequest, signal: AbortSignal): AsyncIterable<EngineEvent>;
  /** The mean over the tokens of the final hidden states, after the last norm. */
  embed(tokens: Int32Array, tenant: string, signal: AbortSignal): Promise<Float32Array>;
  metrics(): Promise<readonly EngineMetric[]>;
  /** End all requests with `engine.closed` and free everything. Idempotent. */
  close(): Promise<void>;
}
