/**
 * @file Chat Completions: OpenAI's API with DeepSeek's additions.
 *
 * `POST /v1/chat/completions`, also without `/v1` and below `/beta`, as DeepSeek serves it.
 */

import type { ConstraintSpec } from "../../inference/engine/api.ts";
import { answer } from "../answering.ts";
import {
  type ChatAsk,
  chatJobs,
  readAdjustments,
  readChatLogProbabilities,
  readChoices,
  readMaxTokens,
  readSampling,
  readSeed,
  readStops,
  tenantOf,
} from "../chat-request.ts";
import { type FieldNames, refuseField, refuseUnsupported } from "../failure.ts";
import { Fields } from "../fields.ts";
import type { ServedModel } from "../models/registry.ts";
import type { Handler } from "../service.ts";
import { ChatShape } from "./openai-chat-shape.ts";
import { readMessages, readToolChoice, readTools } from "./openai-messages.ts";

const EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"] as const;
const FIELD_NAMES: FieldNames = {
  prompt: "messages",
  constraint: "response_format",
  stops: "stop",
  maxTokens: "max_tokens",
};
const USER_CHARACTERS_MAX = 512;

export const chatCompletions: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const ask = readChat(fields, model, exchange.caller);
  const isStream = fields.flag("stream") ?? false;
  const includeUsage = readStreamOptions(fields, isStream);
  fields.end();
  const jobs = await chatJobs(ask);
  const shape = new ChatShape({
    id: `chatcmpl-${exchange.id}`,
    created: service.now(),
    model: model.id,
    tokenizer: model.engine.tokenizer,
    numChoices: ask.numChoices,
    hasLogProbabilities: ask.topLogProbabilities !== null,
    isThinking: jobs[0]!.form!.isThinking,
    includeUsage,
  });
  await answer(exchange, { model, jobs, isStream, shape });
};

function readChat(fields: Fields, model: ServedModel, caller: string): ChatAsk {
  const turns = readMessages(fields);
  const tools = readTools(fields, "nested");
  fields.neutral("parallel_tool_calls", [true]);
  const topLogProbabilities = readChatLogProbabilities(fields);
  refuseNeutrals(fields);
  return {
    model,
    fieldNames: FIELD_NAMES,
    tenant: tenantOf(caller, readUser(fields)),
    conversation: { turns, tools, thinking: readThinking(fields) },
    toolChoice: readToolChoice(fields, tools),
    constraint: readResponseFormat(fields),
    thinkingBudget: readBudget(fields),
    sampling: readSampling(fields),
    adjustments: readAdjustments(fields, model),
    seed: readSeed(fields),
    stopStrings: readStops(fields, "stop"),
    maxTokens: readMaxTokens(fields, "max_completion_tokens", "max_tokens"),
    numChoices: readChoices(fields),
    topLogProbabilities,
  };
}

/** What other servers have; accepted where it asks for what happens here anyway. */
function refuseNeutrals(fields: Fields): void {
  fields.neutral("store", [false], "this server keeps nothing");
  fields.neutral("metadata", [{}], "it belongs to stored completions, and nothing is stored");
  fields.neutral("modalities", [["text"]], "this server answers in text");
  fields.neutral("service_tier", ["auto", "default"]);
  fields.neutral("verbosity", ["medium"], "models here have no levels of it");
}

/** Whoever the caller serves; their caches are kept apart. */
export function readUser(fields: Fields): string | undefined {
  const names = ["user", "user_id", "safety_identifier", "prompt_cache_key"];
  const given = names.map((name) => fields.text(name)).filter((value) => value !== undefined);
  const [user] = given;
  if (user !== undefined && user.length > USER_CHARACTERS_MAX) {
    refuseField("user", `has ${user.length} characters; at most ${USER_CHARACTERS_MAX} are taken`);
  }
  return given.length === 0 ? undefined : given.join("/");
}

/** Thinking on or off, in any of the ways that clients say it. Models here have no levels of it. */
export function readThinking(fields: Fields): boolean {
  const thinking = fields.object("thinking");
  const type = thinking?.choice("type", ["enabled", "disabled"]);
  thinking?.raw("budget_tokens");
  thinking?.end();
  const effort = fields.choice("reasoning_effort", EFFORTS);
  const template = fields.object("chat_template_kwargs");
  const flag = template?.flag("thinking") ?? template?.flag("enable_thinking");
  template?.end();
  if (type !== undefined) return type === "enabled";
  return flag ?? (effort !== undefined && effort !== "none");
}

function readBudget(fields: Fields): number | null {
  const thinking = fields.object("thinking");
  return thinking?.integer("budget_tokens", { least: 1, most: 2 ** 31 - 1 }) ?? null;
}

export function readResponseFormat(fields: Fields): ConstraintSpec | null {
  const format = fields.object("response_format");
  if (format === undefined) return null;
  const type = format.requiredText("type");
  if (type === "json_schema") {
    const named = format.object("json_schema");
    if (named === undefined) refuseField("response_format.json_schema", "is missing");
    named.text("name");
    named.text("description");
    named.neutral("strict", [true, false]);
    const schema = named.raw("schema");
    if (schema === undefined) refuseField("response_format.json_schema.schema", "is missing");
    named.end();
    format.end();
    return { kind: "jsonSchema", schema };
  }
  format.end();
  if (type === "text") return null;
  if (type === "json_object") return { kind: "json" };
  refuseUnsupported("response_format.type", "use text, json_object or json_schema");
}

/** `stream_options`; true if the usage is to come as a chunk of its own. */
export function readStreamOptions(fields: Fields, isStream: boolean): boolean {
  const options = fields.object("stream_options");
  if (options === undefined) return false;
  if (!isStream) refuseField("stream_options", "is for streams only; set stream to true");
  const includeUsage = options.flag("include_usage") ?? false;
  options.neutral("include_obfuscation", [false], "nothing is padded here");
  options.end();
  return includeUsage;
}
