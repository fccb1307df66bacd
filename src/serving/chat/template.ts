/**
 * @file A checkpoint's chat template as a format: conversations in, tokens out.
 *
 * Templates come with the checkpoint, never with a request, and still are programs of somebody
 * else: they run in threads with limits (template-threads.ts). Text of users is shielded
 * (marked-text.ts), so what it spells is never a marker.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { ChatFormat, Conversation, ToolCallStyle, Turn } from "./conversation.ts";
import { Shield } from "./marked-text.ts";
import { type TemplateLimits, TemplateThreads } from "./template-threads.ts";

/** By feel: a template takes milliseconds; a prompt of a million tokens has some megabytes. */
const LIMITS: TemplateLimits = { timeMs: 5000, outputCharacters: 16 * 2 ** 20, threads: 4 };
const TEMPLATE_CHARACTERS_MAX = 2 ** 20;

export class TemplateFormat implements ChatFormat, AsyncDisposable {
  readonly name = "template";
  readonly toolCalls: ToolCallStyle;
  readonly #tokenizer: Tokenizer;
  readonly #renderers: TemplateThreads;

  constructor(tokenizer: Tokenizer, template: string, limits: TemplateLimits = LIMITS) {
    if (template.length > TEMPLATE_CHARACTERS_MAX) {
      const problem = `the chat template has ${template.length} characters; at most 1048576`;
      throw new OperationalError("serving.template", problem);
    }
    this.#tokenizer = tokenizer;
    this.#renderers = new TemplateThreads(template, limits);
    this.toolCalls = template.includes("```json") ? "v3" : "v3.1";
  }

  async render(conversation: Conversation): Promise<Int32Array> {
    const shield = new Shield(this.#tokenizer, JSON.stringify(conversation));
    const last = conversation.turns.at(-1);
    const prefix = last?.role === "assistant" && last.isPrefix ? last : undefined;
    const turns = prefix === undefined ? conversation.turns : conversation.turns.slice(0, -1);
    const { tools, thinking } = conversation;
    const text = await this.#renderers.render({
      messages: turns.map((turn) => messageOf(turn, shield)),
      ...(tools.length === 0
        ? {}
        : {
            tools: tools.map((tool) => ({ type: "function", function: protectAll(tool, shield) })),
          }),
      add_generation_prompt: true,
      bos_token: this.#tokenizer.tokenName(this.#tokenizer.bosId),
      eos_token: this.#tokenizer.tokenName(this.#tokenizer.eosId),
      thinking,
      enable_thinking: thinking,
    });
    const begun =
      prefix === undefined
        ? ""
        : shield.protect(
            prefix.reasoning === null ? prefix.content : `${prefix.reasoning}${prefix.content}`,
          );
    return shield.tokens(this.#tokenizer, text + begun);
  }

  /** What still waits fails; a later rendering starts a thread again. */
  async close(): Promise<void> {
    await this.#renderers.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function messageOf(turn: Turn, shield: Shield): Record<string, unknown> {
  const content = shield.protect(turn.content);
  if (turn.role === "tool")
    return { role: "tool", content, tool_call_id: shield.protect(turn.toolCallId) };
  if (turn.role !== "assistant") return { role: turn.role, content };
  const calls = turn.toolCalls.map(({ id, name, arguments: text }) => ({
    id: shield.protect(id),
    type: "function",
    function: { name: shield.protect(name), arguments: shield.protect(text) },
  }));
  return {
    role: "assistant",
    content,
    ...(turn.reasoning === null ? {} : { reasoning_content: shield.protect(turn.reasoning) }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  };
}

/** A JSON value with every string in it protected, names of fields among them. */
function protectAll(value: unknown, shield: Shield): unknown {
  if (typeof value === "string") return shield.protect(value);
  if (Array.isArray(value)) return value.map((entry) => protectAll(entry, shield));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, inner]) => [shield.protect(name), protectAll(inner, shield)]),
  );
}
