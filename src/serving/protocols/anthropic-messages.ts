/**
 * @file Anthropic's Messages, and counting a request's tokens.
 *
 * Text, tools and thinking; images, documents and tools that run at Anthropic are refused by name.
 * `cache_control` is accepted: prefixes are cached here whether asked or not. A last message of the
 * assistant is gone on with, as that API does.
 */
import { answer } from "../answering.ts";
import type { Tool, ToolCall, Turn } from "../chat/conversation.ts";
import {
  type ChatAsk,
  chatJobs,
  readMaxTokens,
  readSampling,
  readSeed,
  readStops,
  type ToolChoice,
  tenantOf,
} from "../chat-request.ts";
import { type FieldNames, refuseField, refuseUnsupported } from "../failure.ts";
import { Fields } from "../fields.ts";
import type { ServedModel } from "../models/registry.ts";
import type { Handler } from "../service.ts";
import { MessageShape } from "./anthropic-shape.ts";
import { onlyTool, readFunction } from "./openai-messages.ts";

const FIELD_NAMES: FieldNames = {
  prompt: "messages",
  constraint: "tools",
  stops: "stop_sequences",
  maxTokens: "max_tokens",
};
const LIST_MAX = 10_000;
const TOOLS_MAX = 128;
const BUDGET_MAX = 2 ** 31 - 1;
/** Effort is accepted for its "off"; models here have no levels of it. */
const EFFORTS = ["none", "low", "medium", "high", "xhigh", "max"] as const;

export const messages: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const name = fields.requiredText("model");
  const model = service.models.find(name);
  const ask = readAsk(fields, model, exchange.caller);
  if (ask.maxTokens === null) refuseField("max_tokens", "is missing; it must be at least 1");
  const isStream = fields.flag("stream") ?? false;
  fields.end();
  const jobs = await chatJobs(ask);
  const shape = new MessageShape({
    id: `msg_${exchange.id}`,
    model: name,
    promptTokens: jobs[0]!.request.prompt.length,
  });
  await answer(exchange, { model, jobs, isStream, shape });
};

export const countTokens: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const ask = readAsk(fields, model, exchange.caller);
  fields.end();
  const [job] = await chatJobs({ ...ask, numChoices: 1 });
  exchange.json(200, { input_tokens: job!.request.prompt.length });
};

function readAsk(fields: Fields, model: ServedModel, caller: string): ChatAsk {
  const tools = readTools(fields);
  const metadata = fields.object("metadata");
  const user = metadata?.text("user_id");
  metadata?.end();
  const { isOn, budget } = readThinking(fields);
  const turns = [...readSystem(fields), ...readTurns(fields)];
  fields.neutral("service_tier", ["auto", "standard_only"]);
  return {
    model,
    fieldNames: FIELD_NAMES,
    tenant: tenantOf(caller, user),
    conversation: { turns, tools, thinking: isOn },
    toolChoice: readChoice(fields, tools),
    constraint: null,
    thinkingBudget: budget,
    sampling: readSampling(fields, 1),
    adjustments: null,
    seed: readSeed(fields),
    stopStrings: readStops(fields, "stop_sequences"),
    maxTokens: readMaxTokens(fields, "max_tokens"),
    numChoices: 1,
    topLogProbabilities: null,
  };
}

function readThinking(fields: Fields): { readonly isOn: boolean; readonly budget: number | null } {
  const thinking = fields.object("thinking");
  const type = thinking?.choice("type", ["enabled", "disabled", "adaptive"]);
  const budget = thinking?.integer("budget_tokens", { least: 1, most: BUDGET_MAX }) ?? null;
  thinking?.neutral("display", ["summarized", "omitted"]);
  thinking?.end();
  const output = fields.object("output_config");
  const effort = output?.choice("effort", EFFORTS);
  output?.end();
  const isOn = type === undefined ? false : type !== "disabled" && effort !== "none";
  return { isOn, budget: isOn ? budget : null };
}

function readSystem(fields: Fields): Turn[] {
  const value = fields.raw("system");
  if (value === undefined) return [];
  const content = typeof value === "string" ? value : joinTexts(fields, "system");
  return content === "" ? [] : [{ role: "system", content }];
}

/** A list of text blocks. */
function joinTexts(fields: Fields, name: string): string {
  return (fields.list(name, LIST_MAX) ?? [])
    .map((value, index) => {
      const block = blockOf(value, fields.at(`${name}[${index}]`));
      const type = block.requiredText("type");
      if (type !== "text") refuseUnsupported(block.at("type"), "this server takes text only");
      const text = block.requiredText("text");
      block.end();
      return text;
    })
    .join("");
}

function blockOf(value: unknown, path: string): Fields {
  const block = new Fields(value, path);
  block.raw("cache_control");
  block.neutral("citations", [[], { enabled: false }]);
  return block;
}

function readTurns(fields: Fields): Turn[] {
  const list = fields.list("messages", LIST_MAX);
  if (list === undefined || list.length === 0) {
    refuseField("messages", "is missing or empty; it must have at least one message");
  }
  return list.flatMap((value, index) => {
    const message = new Fields(value, `messages[${index}]`);
    const role = message.choice("role", ["user", "assistant", "system"]);
    if (role === undefined) refuseField(message.at("role"), "is missing");
    const content = message.raw("content");
    if (content === undefined) refuseField(message.at("content"), "is missing");
    const isLast = index === list.length - 1;
    const turns = role === "assistant" ? [readAssistant(message, isLast)] : readUser(message, role);
    message.end();
    return turns;
  });
}

function readAssistant(message: Fields, isPrefix: boolean): Turn {
  const content = message.raw("content");
  if (typeof content === "string") {
    return { role: "assistant", content, reasoning: null, toolCalls: [], isPrefix };
  }
  let [text, reasoning] = ["", ""];
  const toolCalls: ToolCall[] = [];
  for (const [index, value] of (message.list("content", LIST_MAX) ?? []).entries()) {
    const block = blockOf(value, message.at(`content[${index}]`));
    const type = block.requiredText("type");
    if (type === "text") text += block.requiredText("text");
    else if (type === "thinking") {
      reasoning += block.requiredText("thinking");
      block.text("signature");
    } else if (type === "tool_use") {
      const id = block.requiredText("id");
      const input = block.raw("input") ?? {};
      toolCalls.push({ id, name: block.requiredText("name"), arguments: JSON.stringify(input) });
    } else refuseUnsupported(block.at("type"), "use text, thinking or tool_use");
    block.end();
  }
  const isBegun = isPrefix && toolCalls.length === 0;
  return {
    role: "assistant",
    content: text,
    reasoning: reasoning === "" ? null : reasoning,
    toolCalls,
    isPrefix: isBegun,
  };
}

/** Tool results are turns of their own, before what the user says. */
function readUser(message: Fields, role: "user" | "system"): Turn[] {
  const content = message.raw("content");
  if (typeof content === "string") return [{ role, content }];
  const results: Turn[] = [];
  let text = "";
  for (const [index, value] of (message.list("content", LIST_MAX) ?? []).entries()) {
    const block = blockOf(value, message.at(`content[${index}]`));
    const type = block.requiredText("type");
    if (type === "text") text += block.requiredText("text");
    else if (type === "tool_result") {
      const result = block.raw("content");
      const said = typeof result === "string" ? result : joinTexts(block, "content");
      const mark = (block.flag("is_error") ?? false) ? "Error: " : "";
      const toolCallId = block.requiredText("tool_use_id");
      results.push({ role: "tool", content: mark + said, toolCallId });
    } else refuseUnsupported(block.at("type"), "use text or tool_result");
    block.end();
  }
  return text === "" && results.length > 0 ? results : [...results, { role, content: text }];
}

function readTools(fields: Fields): Tool[] {
  return (fields.list("tools", TOOLS_MAX) ?? []).map((value, index) => {
    const tool = blockOf(value, `tools[${index}]`);
    tool.neutral("type", ["custom"], "only tools of the client's own can be called");
    const result = readFunction(tool, "input_schema");
    tool.end();
    return result;
  });
}

function readChoice(fields: Fields, tools: readonly Tool[]): ToolChoice {
  const choice = fields.object("tool_choice");
  if (choice === undefined) return tools.length > 0 ? "auto" : "none";
  const type = choice.choice("type", ["auto", "any", "tool", "none"]);
  const name = choice.text("name");
  choice.neutral("disable_parallel_tool_use", [false]);
  choice.end();
  if (type === "none" || (type === "auto" && tools.length === 0)) return "none";
  if (type === "auto") return "auto";
  if (tools.length === 0) refuseField("tool_choice", "needs tools to choose from");
  if (type === "any") return onlyTool(tools);
  if (name !== undefined && tools.some((tool) => tool.name === name)) return { name };
  refuseField("tool_choice.name", "must name one of the tools");
}
