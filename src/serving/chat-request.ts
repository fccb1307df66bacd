/**
 * @file What is asked of a model, whatever the protocol: sampling, limits, conversation, form.
 *
 * OpenAI's, DeepSeek's and Anthropic's requests are read into an `Ask` or a `ChatAsk`, and become
 * jobs here and nowhere else.
 */
import { randomInt } from "node:crypto";
import { OperationalError } from "../base/errors.ts";
import type { ConstraintSpec, EngineRequest, LogitAdjustments } from "../inference/engine/api.ts";
import type { SamplingOptions } from "../inference/sampler.ts";
import type { Conversation } from "./chat/conversation.ts";
import { PromptWriter } from "./chat/marked-text.ts";
import { writeForcedCall } from "./chat/tool-marks.ts";
import { type FieldNames, refuseField, refuseUnsupported } from "./failure.ts";
import type { Fields } from "./fields.ts";
import type { Job } from "./generation.ts";
import type { ServedModel } from "./models/registry.ts";

/** What any generation is asked for. */
export interface Ask {
  readonly model: ServedModel;
  readonly fieldNames: FieldNames;
  readonly tenant: string;
  readonly sampling: SamplingOptions;
  readonly adjustments: LogitAdjustments | null;
  readonly seed: number;
  readonly stopStrings: readonly string[];
  /** null: what the context leaves. */
  readonly maxTokens: number | null;
  readonly numChoices: number;
  readonly topLogProbabilities: number | null;
}

export interface ChatAsk extends Ask {
  readonly conversation: Conversation;
  readonly toolChoice: ToolChoice;
  readonly constraint: ConstraintSpec | null;
  /** The most tokens of reasoning. */
  readonly thinkingBudget: number | null;
}

/** auto: the model decides; else the tool it must call. */
export type ToolChoice = "none" | "auto" | { readonly name: string };

export const CHOICES_MAX = 16;
export const STOPS_MAX = 16;
const PROBABILITIES_MAX = 20;
const SEED_MAX = Number.MAX_SAFE_INTEGER;
const INTEGER_MAX = 2 ** 31 - 1;

/** temperature, top_p, top_k, min_p. */
export function readSampling(fields: Fields, temperatureMax = 2): SamplingOptions {
  const topP = fields.number("top_p", { least: 0, most: 1 }) ?? 1;
  if (topP === 0) refuseField(fields.at("top_p"), "must be above 0");
  return {
    temperature: fields.number("temperature", { least: 0, most: temperatureMax }) ?? 1,
    topP,
    topK: fields.integer("top_k", { least: 0, most: INTEGER_MAX }) ?? 0,
    minP: fields.number("min_p", { least: 0, most: 1 }) ?? 0,
  };
}

/** The seed of the request, else one that nobody chose. */
export function readSeed(fields: Fields): number {
  return fields.integer("seed", { least: 0, most: SEED_MAX }) ?? randomInt(2 ** 47);
}

/** One stop string or a list of them. */
export function readStops(fields: Fields, name: string): readonly string[] {
  const value = fields.raw(name);
  if (typeof value === "string") return value === "" ? [] : [value];
  const list = fields.list(name, STOPS_MAX) ?? [];
  return list.map((stop, index) => {
    return typeof stop === "string" && stop !== ""
      ? stop
      : refuseField(fields.at(`${name}[${index}]`), "must be a string that is not empty");
  });
}

/** presence_penalty, frequency_penalty, logit_bias. */
export function readAdjustments(fields: Fields, { engine }: ServedModel): LogitAdjustments | null {
  const range = { least: -2, most: 2 };
  const presencePenalty = fields.number("presence_penalty", range) ?? 0;
  const frequencyPenalty = fields.number("frequency_penalty", range) ?? 0;
  const biases = fields.object("logit_bias");
  const bias = (biases?.names() ?? []).map((name) => {
    const token = Number(name);
    if (!/^\d{1,9}$/.test(name) || token >= engine.description.vocabSize) {
      const allowed = `token ids go from 0 to ${engine.description.vocabSize - 1}`;
      refuseField("logit_bias", `names a token that is not in the vocabulary; ${allowed}`);
    }
    return [token, biases!.number(name, { least: -100, most: 100 }) ?? 0] as const;
  });
  if (bias.length === 0 && presencePenalty === 0 && frequencyPenalty === 0) return null;
  return { bias, presencePenalty, frequencyPenalty };
}

/** `n` */
export function readChoices(fields: Fields): number {
  return fields.integer("n", { least: 1, most: CHOICES_MAX }) ?? 1;
}

/** `logprobs` and `top_logprobs` of chats. */
export function readChatLogProbabilities(fields: Fields): number | null {
  const isAsked = fields.flag("logprobs") ?? false;
  const top = fields.integer("top_logprobs", { least: 0, most: PROBABILITIES_MAX });
  if (top !== undefined && top > 0 && !isAsked) {
    refuseField(fields.at("top_logprobs"), "needs logprobs to be true");
  }
  return isAsked ? (top ?? 0) : null;
}

/** The most tokens; the first of several names that is given. */
export function readMaxTokens(fields: Fields, ...names: readonly string[]): number | null {
  const given = names.map((name) => fields.integer(name, { least: 1, most: INTEGER_MAX }));
  return given.find((value) => value !== undefined) ?? null;
}

/** The caller, an account of the engine, and the end user that it names. */
export function tenantOf(caller: string, user: string | undefined): string {
  return user === undefined ? caller : `${caller}/${user}`;
}

/** The engine's part of a request; `index` tells choices apart. */
export function engineRequest(
  ask: Ask,
  prompt: Int32Array,
  { index, isEchoed = false }: { readonly index: number; readonly isEchoed?: boolean },
): EngineRequest {
  const { contextTokens } = ask.model.engine.description;
  if (prompt.length >= contextTokens) {
    throw new OperationalError(
      "engine.context",
      `the prompt has ${prompt.length} tokens; the context of ${ask.model.id} takes ` +
        `${contextTokens}, prompt and answer together`,
      { param: ask.fieldNames.prompt },
    );
  }
  return {
    prompt,
    maxTokens: ask.maxTokens ?? contextTokens - prompt.length,
    sampling: ask.sampling,
    adjustments: ask.adjustments,
    seed: (ask.seed + index) % SEED_MAX,
    stopStrings: ask.stopStrings,
    endTokens: null,
    topLogProbabilities: ask.topLogProbabilities,
    promptLogProbabilities: isEchoed && ask.topLogProbabilities !== null,
    constraint: null,
    tenant: ask.tenant,
    deadlineMs: null,
    draft: "auto",
  };
}

/** The jobs of a chat: one for each choice. */
export async function chatJobs(ask: ChatAsk): Promise<readonly Job[]> {
  const { model, conversation, toolChoice } = ask;
  const { tokenizer } = model.engine;
  const endToken = tokenizer.specialId("thinkEnd");
  const forced = typeof toolChoice === "object" ? toolChoice.name : null;
  if (conversation.thinking && (endToken === undefined || forced !== null)) {
    const remedy =
      forced === null ? "the model's vocabulary has no </think>" : "call no named tool";
    refuseUnsupported("thinking", remedy);
  }
  const offered = toolChoice === "none" ? { ...conversation, tools: [] } : conversation;
  const prompt = await promptOf(ask, offered, forced);
  const isPhased = ask.constraint !== null || ask.thinkingBudget !== null;
  const constraint = forced === null ? ask.constraint : argumentsOf(conversation, forced);
  const isThinking = conversation.thinking || isInsideReasoning(prompt, model);
  const fieldNames = forced === null ? ask.fieldNames : { ...ask.fieldNames, constraint: "tools" };
  return Array.from({ length: ask.numChoices }, (_, index) => ({
    request: { ...engineRequest(ask, prompt, { index }), constraint },
    fieldNames,
    form: { isThinking, hasTools: offered.tools.length > 0, forcedTool: forced },
    reasoning:
      isThinking && isPhased && endToken !== undefined
        ? { endToken, tokensMax: ask.thinkingBudget }
        : null,
  }));
}

async function promptOf(
  { model }: ChatAsk,
  conversation: Conversation,
  forced: string | null,
): Promise<Int32Array> {
  const prompt = await model.format.render(conversation);
  if (forced === null) return prompt;
  const begun = new PromptWriter(model.engine.tokenizer);
  writeForcedCall(begun, model.format.toolCalls, forced);
  return Int32Array.from([...prompt, ...begun.tokens()]);
}

function argumentsOf({ tools }: Conversation, name: string): ConstraintSpec {
  const tool = tools.find((one) => one.name === name);
  if (tool === undefined) refuseField("tool_choice", "names a function that is not among tools");
  return { kind: "jsonSchema", schema: tool.parameters };
}

/** Whether the last thinking mark of a prompt opens: a template may do so by itself. */
function isInsideReasoning(prompt: Int32Array, { engine }: ServedModel): boolean {
  const begin = engine.tokenizer.specialId("thinkBegin");
  const end = engine.tokenizer.specialId("thinkEnd");
  if (begin === undefined || end === undefined) return false;
  return prompt.lastIndexOf(begin) > prompt.lastIndexOf(end);
}
