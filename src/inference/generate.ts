/**
 * @file Generation: a prompt in, tokens and text out, one token at a time.
 *
 * Ends with a reason: an end token, a stop string, the length asked for, the end of the context, or
 * the caller's abort. A prompt that leaves no room for a single token is an error, never cut. Text
 * is given out as soon as it is decided: whole characters only, nothing that could still become a
 * stop string. Special tokens have no text. Ids that the tokenizer does not have (models are
 * padded) are never chosen.
 */
import { OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { describeToken } from "./engine/log-probabilities.ts";
import { type Healing, HealingState } from "./healing.ts";
import { Sampler, type SamplingOptions } from "./sampler.ts";
import { nextTurn, type Session } from "./session.ts";
import { TextBuilder } from "./text-builder.ts";

/** What generation asks of a session. */
export type LogitSource = Pick<Session, "contextTokens" | "keepCommon" | "read" | "append">;

export interface GenerateOptions {
  readonly sampling: SamplingOptions;
  readonly seed: number;
  /** The most tokens to generate. */
  readonly maxTokens: number;
  /** Neither these nor what follows is in the text. */
  readonly stopStrings?: readonly string[];
  /**
   * Tokens that end the text and are not part of the result; the tokenizer's end of sequence if
   * left out.
   */
  readonly endTokens?: readonly number[];
  /**
   * The end of the prompt's text that the prompt lacks: it is generated first, and is not in the
   * result. Tokens that say nothing else count for nothing.
   */
  readonly healing?: Healing | null;
  readonly signal?: AbortSignal;
}

export type StopReason = "end" | "stop" | "length" | "context" | "aborted";

export interface Generation {
  readonly text: string;
  /**
   * Generated tokens, without the end token; with a stop string, up to and with the token that
   * completed it. The first may begin with bytes of the prompt (`healing`).
   */
  readonly tokens: readonly number[];
  /** ln of the model's probability of each of them. */
  readonly logProbabilities: readonly number[];
  readonly reason: StopReason;
  /** The stop string that ended it. */
  readonly stop: string | null;
  /** Tokens of the prompt that were in the session's cache already. */
  readonly numCachedTokens: number;
}

/** Generate from `prompt`; `onText` is given the text in pieces. */
export async function generate(
  session: LogitSource,
  tokenizer: Tokenizer,
  prompt: Int32Array,
  options: GenerateOptions,
  onText: (text: string) => void = () => {},
): Promise<Generation> {
  checkRoom(session, prompt, options);
  const sampler = new Sampler(options.sampling, options.seed);
  const endTokens = new Set(options.endTokens ?? [tokenizer.eosId]);
  const text = new TextBuilder(tokenizer, options.stopStrings ?? [], onText);
  const healing = options.healing ? new HealingState(tokenizer, options.healing) : null;
  const tokens: number[] = [];
  let numRepeating = 0;
  const logProbabilities: number[] = [];
  const isAborted = (): boolean => options.signal?.aborted ?? false;
  const numCachedTokens = session.keepCommon(prompt);
  const end = (reason: StopReason): Generation => {
    if (text.stop === null) text.finish();
    const { text: whole, stop } = text;
    const why = stop === null ? reason : "stop";
    return { text: whole, tokens, logProbabilities, reason: why, stop, numCachedTokens };
  };
  let logits = await session.read(prompt, isAborted);
  for (;;) {
    if (logits === null || isAborted()) return end("aborted");
    const own = logits.subarray(0, tokenizer.vocabSize);
    const token = chooseToken(sampler, own, healing);
    if (endTokens.has(token)) return end("end");
    const repeated = healing?.accept(token) ?? 0;
    if (repeated > 0 && repeated === tokenizer.countBytes(token)) numRepeating++;
    else {
      tokens.push(token);
      logProbabilities.push(describeToken(own, token, 0).logProbability);
      text.push(token, repeated);
    }
    if (text.stop !== null) return end("stop");
    if (tokens.length === options.maxTokens) return end("length");
    const numTokens = prompt.length + numRepeating + tokens.length;
    if (numTokens === session.contextTokens) return end("context");
    await nextTurn();
    if (!isAborted()) logits = session.append(token);
  }
}

function chooseToken(sampler: Sampler, logits: Float32Array, healing: HealingState | null): number {
  if (healing === null || healing.isDone) return sampler.sample(logits);
  const masked = logits.slice();
  healing.maskOut(masked);
  return sampler.sample(masked);
}

function checkRoom(session: LogitSource, prompt: Int32Array, { maxTokens }: GenerateOptions): void {
  if (!isIntegerIn(maxTokens, 1, 2 ** 31 - 1)) {
    throw new OperationalError(
      "inference.length",
      `the most tokens to generate (${maxTokens}) must be a whole number of at least 1`,
    );
  }
  if (prompt.length === 0) {
    throw new OperationalError(
      "inference.prompt",
      "the prompt has no token; begin it with the begin-of-sequence token",
    );
  }
  if (prompt.length >= session.contextTokens) {
    throw new OperationalError(
      "inference.context",
      `the prompt has ${prompt.length} tokens, the context takes ${session.contextTokens} ` +
        "including what is generated; shorten the prompt or enlarge the context",
      { promptTokens: prompt.length, contextTokens: session.contextTokens },
    );
  }
}
