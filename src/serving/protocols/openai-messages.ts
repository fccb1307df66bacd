/**
 * @file OpenAI's messages, tools and tool choice, read into a conversation.
 *
 * Text only: any other part of a message is refused by name, URLs are never followed. DeepSeek's
 * additions: `reasoning_content` of earlier answers is taken or may be absent, and `prefix: true`
 * on the last message lets the model go on from it.
 */
import type { Tool, ToolCall, Turn } from "../chat/conversation.ts";
import type { ToolChoice } from "../chat-request.ts";
import { refuseField, refuseUnsupported } from "../failure.ts";
import { Fields, show } from "../fields.ts";

const MESSAGES_MAX = 10_000;
const PARTS_MAX = 1000;
const TOOLS_MAX = 128;
const CALLS_MAX = 128;
const ROLES = ["system", "developer", "user", "assistant", "tool"] as const;
const TOOL_NAME = /^[A-Za-z0-9_-]{1,64}$/;

export function readMessages(fields: Fields): Turn[] {
  const list = fields.list("messages", MESSAGES_MAX);
  if (list === undefined || list.length === 0) {
    refuseField("messages", "is missing or empty; it must have at least one message");
  }
  const turns = list.map((value, index) => readMessage(new Fields(value, `messages[${index}]`)));
  for (const [index, turn] of turns.entries()) {
    if (turn.role === "assistant" && turn.isPrefix && index < turns.length - 1) {
      refuseField(`messages[${index}].prefix`, "may be true in the last message only");
    }
  }
  return turns;
}

function readMessage(message: Fields): Turn {
  const role = message.choice("role", ROLES);
  if (role === undefined) refuseField(message.at("role"), "is missing");
  const content = readContent(message, "content");
  message.neutral("name", [], "put the name into the content");
  const turn = turnOf(role, content, message);
  message.end();
  return turn;
}

function turnOf(role: (typeof ROLES)[number], content: string | undefined, message: Fields): Turn {
  if (role === "assistant") {
    const toolCalls = readToolCalls(message);
    if (content === undefined && toolCalls.length === 0) {
      refuseField(message.at("content"), "is missing");
    }
    message.neutral("refusal", []);
    message.neutral("audio", []);
    message.neutral("annotations", [[]]);
    return {
      role,
      content: content ?? "",
      reasoning: message.text("reasoning_content") ?? message.text("reasoning") ?? null,
      toolCalls,
      isPrefix: message.flag("prefix") ?? false,
    };
  }
  if (content === undefined) refuseField(message.at("content"), "is missing");
  if (role === "tool") return { role, content, toolCallId: message.requiredText("tool_call_id") };
  return { role: role === "user" ? "user" : "system", content };
}

/** A string, or text parts. */
export function readContent(message: Fields, name: string): string | undefined {
  const value = message.raw(name);
  if (value === undefined || typeof value === "string") return value;
  const parts = message.list(name, PARTS_MAX) ?? [];
  return parts
    .map((part, index) => {
      const fields = new Fields(part, message.at(`${name}[${index}]`));
      const type = fields.requiredText("type");
      if (!["text", "input_text", "output_text", "reasoning_text"].includes(type)) {
        refuseUnsupported(fields.at("type"), "this server takes text only");
      }
      const text = fields.requiredText("text");
      fields.neutral("annotations", [[]]);
      fields.neutral("logprobs", [[]]);
      fields.end();
      return text;
    })
    .join("");
}

function readToolCalls(message: Fields): ToolCall[] {
  const list = message.list("tool_calls", CALLS_MAX) ?? [];
  return list.map((value, index) => {
    const call = new Fields(value, message.at(`tool_calls[${index}]`));
    call.neutral("type", ["function"]);
    call.raw("index");
    const id = call.requiredText("id");
    const called = call.object("function");
    if (called === undefined) refuseField(call.at("function"), "is missing");
    const result = {
      id,
      name: called.requiredText("name"),
      arguments: called.text("arguments") ?? "{}",
    };
    called.end();
    call.end();
    return result;
  });
}

/** Tools in the nested form of chats, or flat as in Responses. */
export function readTools(fields: Fields, form: "nested" | "flat"): Tool[] {
  const list = fields.list("tools", TOOLS_MAX) ?? [];
  return list.map((value, index) => {
    const tool = new Fields(value, `tools[${index}]`);
    tool.neutral("type", ["function"], "only functions can be called");
    const named = form === "nested" ? tool.object("function") : tool;
    if (named === undefined) refuseField(tool.at("function"), "is missing");
    const result = readFunction(named);
    named.end();
    tool.end();
    return result;
  });
}

export function readFunction(fields: Fields, schemaName = "parameters"): Tool {
  const name = fields.requiredText("name");
  if (!TOOL_NAME.test(name)) {
    refuseField(
      fields.at("name"),
      `must be 1 to 64 letters, digits, '_' or '-', not ${show(name)}`,
    );
  }
  const description = fields.text("description") ?? "";
  const parameters = fields.object(schemaName) === undefined ? undefined : fields.raw(schemaName);
  // Arguments follow the schema wherever a call is forced, so strict asks for nothing more.
  fields.neutral("strict", [false, true]);
  return { name, description, parameters: parameters ?? { type: "object", properties: {} } };
}

/** `tool_choice`: none, auto, a named function; required where there is one to require. */
export function readToolChoice(fields: Fields, tools: readonly Tool[]): ToolChoice {
  const value = fields.raw("tool_choice");
  if (value === undefined || value === "auto") return tools.length > 0 ? "auto" : "none";
  if (value === "none") return "none";
  if (tools.length === 0) refuseField("tool_choice", "needs tools to choose from");
  if (value === "required") return onlyTool(tools);
  const choice = new Fields(value, "tool_choice");
  choice.neutral("type", ["function"]);
  const name = choice.object("function")?.requiredText("name") ?? choice.requiredText("name");
  choice.end();
  if (!tools.some((tool) => tool.name === name)) {
    refuseField("tool_choice", "names a function that is not among tools");
  }
  return { name };
}

/** A tool must be called: which one is clear only if there is one. */
export function onlyTool(tools: readonly Tool[]): ToolChoice {
  if (tools.length === 1) return { name: tools[0]!.name };
  refuseUnsupported("tool_choice", "with several tools name the one that must be called");
}
