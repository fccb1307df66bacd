/**
 * @file Completions: OpenAI's older API; with `suffix` it fills the gap between two texts, as
 * DeepSeek's `/beta/completions` does.
 *
 * A text is given a begin of sentence, as the vocabulary wants it, and is healed where it may end
 * inside a token (inference/healing.ts). It is not where tokens are told, with `echo` or
 * `logprobs`: those are of the prompt as it is encoded, and of tokens that begin where it ends.
 * Token ids are taken as they are. Every prompt of a list has `n` choices, numbered prompt by
 * prompt.
 */
import { isIntegerIn } from "../../base/integers.ts";
import type { Healing } from "../../inference/healing.ts";
import { continuationPrompt, gapPrompt } from "../../inference/prompt.ts";
import { fimPrompt } from "../../tokenizer/fim.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { answer } from "../answering.ts";
import {
  type Ask,
  engineRequest,
  readAdjustments,
  readChoices,
  readSampling,
  readSeed,
  readStops,
  tenantOf,
} from "../chat-request.ts";
import { type FieldNames, refuseField, refuseUnsupported } from "../failure.ts";
import { Fields, show } from "../fields.ts";
import type { ServedModel } from "../models/registry.ts";
import type { Handler } from "../service.ts";
import { readStreamOptions, readUser } from "./openai-chat.ts";
import { CompletionShape } from "./openai-completions-shape.ts";

const FIELD_NAMES: FieldNames = {
  prompt: "prompt",
  stops: "stop",
  maxTokens: "max_tokens",
};
const PROMPTS_MAX = 64;
/** Prompts times choices. */
const ANSWERS_MAX = 128;
const TOKENS_MAX = 2 ** 22;
/** What does not fit the context is refused, not cut. */
const UNCUT = Number.MAX_SAFE_INTEGER;
const PROBABILITIES_MAX = 20;
/** OpenAI's own default. */
const TOKENS_DEFAULT = 16;

export interface CompletionPrompt {
  readonly tokens: Int32Array;
  /** What `echo` gives back. */
  readonly text: string;
  /** What `tokens` lacks at its end. */
  readonly healing: Healing | null;
}

export const completions: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const suffix = fields.text("suffix");
  const isEchoed = fields.flag("echo") ?? false;
  if (isEchoed && suffix !== undefined) {
    refuseUnsupported("echo", "it cannot be combined with suffix");
  }
  const ask = readCompletion(fields, model, exchange.caller);
  const heals = !isEchoed && ask.topLogProbabilities === null && ask.maxTokens !== 0;
  const prompts = readPrompts(fields, model, { suffix, heals });
  fields.neutral("best_of", [1, ask.numChoices], "all choices are returned; use n");
  const isStream = fields.flag("stream") ?? false;
  const includeUsage = readStreamOptions(fields, isStream);
  fields.end();
  if (prompts.length * ask.numChoices > ANSWERS_MAX) {
    const given = `${prompts.length} prompts with ${ask.numChoices} choices each`;
    refuseField("n", `asks for too much: ${given}; at most ${ANSWERS_MAX} answers are given`);
  }
  const jobs = prompts.flatMap(({ tokens, healing }) =>
    Array.from({ length: ask.numChoices }, (_, index) => ({
      request: { ...engineRequest(ask, tokens, { index, isEchoed }), healing },
      fieldNames: FIELD_NAMES,
      form: null,
      reasoning: null,
    })),
  );
  const shape = new CompletionShape({
    id: `cmpl-${exchange.id}`,
    created: service.now(),
    model: model.id,
    tokenizer: model.engine.tokenizer,
    prompts,
    numChoices: ask.numChoices,
    isEchoed,
    hasLogProbabilities: ask.topLogProbabilities !== null,
    includeUsage,
  });
  await answer(exchange, { model, jobs, isStream, shape });
};

function readCompletion(fields: Fields, model: ServedModel, caller: string): Ask {
  const top = fields.integer("logprobs", { least: 0, most: PROBABILITIES_MAX });
  return {
    model,
    fieldNames: FIELD_NAMES,
    tenant: tenantOf(caller, readUser(fields)),
    sampling: readSampling(fields),
    adjustments: readAdjustments(fields, model),
    seed: readSeed(fields),
    stopStrings: readStops(fields, "stop"),
    maxTokens: fields.integer("max_tokens", { least: 0, most: 2 ** 31 - 1 }) ?? TOKENS_DEFAULT,
    numChoices: readChoices(fields),
    topLogProbabilities: top ?? null,
  };
}

/** A text, texts, token ids, or lists of token ids. */
function readPrompts(
  fields: Fields,
  { engine }: ServedModel,
  { suffix, heals }: { readonly suffix: string | undefined; readonly heals: boolean },
): readonly CompletionPrompt[] {
  const { tokenizer, description } = engine;
  const value = fields.raw("prompt");
  if (value === undefined) refuseField("prompt", "is missing");
  const isTokens = (one: unknown): boolean => Array.isArray(one) && typeof one[0] === "number";
  const list =
    typeof value === "string" || isTokens(value) ? [value] : fields.list("prompt", PROMPTS_MAX)!;
  if (list.length === 0) refuseField("prompt", "is an empty list");
  if (suffix !== undefined && !list.every((one) => typeof one === "string")) {
    refuseField("prompt", "must be text where there is a suffix");
  }
  return list.map((one, index) => {
    if (typeof one === "string")
      return { ...encodePrompt(tokenizer, one, suffix, heals), text: one };
    const tokens = readTokens(one, `prompt[${index}]`, description.vocabSize);
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    return { tokens, text, healing: null };
  });
}

function encodePrompt(
  tokenizer: Tokenizer,
  prefix: string,
  suffix: string | undefined,
  heals: boolean,
): Pick<CompletionPrompt, "tokens" | "healing"> {
  if (heals) {
    return suffix === undefined
      ? continuationPrompt(tokenizer, prefix, UNCUT)
      : gapPrompt(tokenizer, { prefix, suffix }, UNCUT);
  }
  const tokens =
    suffix === undefined
      ? Int32Array.from([tokenizer.bosId, ...tokenizer.encode(prefix)])
      : fimPrompt(tokenizer, { prefix, suffix });
  return { tokens, healing: null };
}

/** Token ids that the vocabulary has. */
export function readTokens(value: unknown, subject: string, vocabSize: number): Int32Array {
  if (!Array.isArray(value)) refuseField(subject, `must be text or token ids, not ${show(value)}`);
  if (value.length === 0 || value.length > TOKENS_MAX) {
    refuseField(subject, `has ${value.length} tokens; 1 to ${TOKENS_MAX} are taken`);
  }
  const wrong = value.find((token) => !isIntegerIn(token, 0, vocabSize - 1));
  if (wrong !== undefined) {
    const allowed = `token ids are whole numbers from 0 to ${vocabSize - 1}`;
    refuseField(subject, `holds ${show(wrong)}; ${allowed}`);
  }
  return Int32Array.from(value as number[]);
}
