/**
 * @file OpenAI's Responses, without state: nothing is stored, so a request brings everything with
 * it. `previous_response_id`, `conversation`, `background` and `store: true` are refused.
 */

import type { ConstraintSpec } from "../../inference/engine/api.ts";
import { answer } from "../answering.ts";
import type { Turn } from "../chat/conversation.ts";
import {
  type ChatAsk,
  chatJobs,
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
import { readUser } from "./openai-chat.ts";
import { readContent, readToolChoice, readTools } from "./openai-messages.ts";
import { ResponseShape } from "./openai-responses-shape.ts";

const FIELD_NAMES: FieldNames = {
  prompt: "input",
  constraint: "text.format",
  stops: "stop",
  maxTokens: "max_output_tokens",
};
const ITEMS_MAX = 10_000;
const EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"] as const;

export const responses: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const instructions = fields.text("instructions") ?? null;
  const ask = readAsk(fields, model, exchange.caller);
  const isStream = fields.flag("stream") ?? false;
  fields.end();
  const jobs = await chatJobs(ask);
  const shape = new ResponseShape({
    id: exchange.id,
    createdAt: service.now(),
    model: model.id,
    instructions,
    ask,
    echoed: {
      tools: fields.raw("tools") ?? [],
      tool_choice: fields.raw("tool_choice") ?? "auto",
      text: fields.raw("text") ?? { format: { type: "text" } },
    },
  });
  await answer(exchange, { model, jobs, isStream, shape });
};

export const countInputTokens: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const ask = readAsk(fields, model, exchange.caller);
  fields.end();
  const [job] = await chatJobs(ask);
  const input_tokens = job!.request.prompt.length;
  exchange.json(200, { object: "response.input_tokens", input_tokens });
};

function readAsk(fields: Fields, model: ServedModel, caller: string): ChatAsk {
  const instructions = fields.text("instructions");
  const system: Turn[] =
    instructions === undefined ? [] : [{ role: "system", content: instructions }];
  const tools = readTools(fields, "flat");
  refuseState(fields);
  return {
    model,
    fieldNames: FIELD_NAMES,
    tenant: tenantOf(caller, readUser(fields)),
    conversation: { turns: [...system, ...readInput(fields)], tools, thinking: readEffort(fields) },
    toolChoice: readToolChoice(fields, tools),
    constraint: readFormat(fields),
    thinkingBudget: null,
    sampling: readSampling(fields),
    adjustments: null,
    seed: readSeed(fields),
    stopStrings: readStops(fields, "stop"),
    maxTokens: readMaxTokens(fields, "max_output_tokens"),
    numChoices: 1,
    topLogProbabilities: null,
  };
}

function refuseState(fields: Fields): void {
  const remedy = "this server keeps nothing between requests; send the whole input";
  for (const name of ["previous_response_id", "conversation", "prompt"]) {
    fields.neutral(name, [], remedy);
  }
  fields.neutral("store", [false], "this server keeps nothing; set store to false");
  fields.neutral("background", [false], "wait for the answer, or stream it");
  fields.neutral("include", [[], ["reasoning.encrypted_content"]], "nothing more can be included");
  fields.neutral("truncation", ["disabled"], "nothing is cut here; shorten the input");
  fields.neutral("parallel_tool_calls", [true]);
  fields.neutral("service_tier", ["auto", "default"]);
  fields.neutral("metadata", [{}], "it belongs to stored responses, and nothing is stored");
  fields.neutral("top_logprobs", [0]);
  fields.neutral("stream_options", [{}, { include_obfuscation: false }]);
}

function readEffort(fields: Fields): boolean {
  const reasoning = fields.object("reasoning");
  const effort = reasoning?.choice("effort", EFFORTS);
  reasoning?.neutral("summary", ["auto"], "reasoning is given in full, not in summary");
  reasoning?.end();
  return effort !== undefined && effort !== "none";
}

function readFormat(fields: Fields): ConstraintSpec | null {
  const text = fields.object("text");
  const format = text?.object("format");
  text?.neutral("verbosity", ["medium"], "models here have no levels of it");
  text?.end();
  if (format === undefined) return null;
  const type = format.requiredText("type");
  format.text("name");
  format.text("description");
  format.flag("strict");
  const schema = format.raw("schema");
  format.end();
  if (type === "text") return null;
  if (type === "json_object") return { kind: "json" };
  if (type !== "json_schema") refuseUnsupported("text.format.type", "use text or json_schema");
  if (schema === undefined) refuseField("text.format.schema", "is missing");
  return { kind: "jsonSchema", schema };
}

function readInput(fields: Fields): Turn[] {
  const value = fields.raw("input");
  if (typeof value === "string") return [{ role: "user", content: value }];
  const list = fields.list("input", ITEMS_MAX);
  if (list === undefined || list.length === 0) refuseField("input", "is missing or empty");
  return joinAssistant(
    list.map((item, index) => {
      const fieldsOfItem = new Fields(item, `input[${index}]`);
      const turn = readItem(fieldsOfItem);
      fieldsOfItem.end();
      return turn;
    }),
  );
}

function readItem(item: Fields): Turn {
  const type = item.text("type") ?? "message";
  item.text("id");
  item.text("status");
  const assistant = { role: "assistant", content: "", reasoning: null, toolCalls: [] } as const;
  switch (type) {
    case "message": {
      const role = item.choice("role", ["user", "assistant", "system", "developer"]);
      if (role === undefined) refuseField(item.at("role"), "is missing");
      item.text("phase");
      const content = readContent(item, "content");
      if (content === undefined) refuseField(item.at("content"), "is missing");
      if (role === "assistant") return { ...assistant, content, isPrefix: false };
      return { role: role === "user" ? "user" : "system", content };
    }
    case "function_call": {
      const id = item.requiredText("call_id");
      const name = item.requiredText("name");
      const call = { id, name, arguments: item.requiredText("arguments") };
      return { ...assistant, toolCalls: [call], isPrefix: false };
    }
    case "function_call_output": {
      const toolCallId = item.requiredText("call_id");
      return { role: "tool", content: readContent(item, "output") ?? "", toolCallId };
    }
    case "reasoning": {
      item.raw("summary");
      item.neutral("encrypted_content", []);
      const reasoning = readContent(item, "content") ?? "";
      return { ...assistant, reasoning, isPrefix: false };
    }
    default:
      refuseUnsupported(item.at("type"), "use message, function_call or function_call_output");
  }
}

/** Reasoning, text and calls of one answer are items of their own there, one turn here. */
function joinAssistant(turns: readonly Turn[]): Turn[] {
  const joined: Turn[] = [];
  for (const turn of turns) {
    const last = joined.at(-1);
    if (turn.role !== "assistant" || last?.role !== "assistant") {
      joined.push(turn);
      continue;
    }
    joined[joined.length - 1] = {
      ...turn,
      content: last.content + turn.content,
      reasoning: last.reasoning ?? turn.reasoning,
      toolCalls: [...last.toolCalls, ...turn.toolCalls],
    };
  }
  return joined;
}
