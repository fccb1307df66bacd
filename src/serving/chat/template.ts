/**
 * @file A checkpoint's chat template, rendered in a worker with limits on time and output.
 *
 * Templates come with the checkpoint, never with a request, and still are programs of somebody
 * else: one may loop for ever. So they run in a thread of their own (template-worker.ts), which is
 * ended when a rendering takes too long and started again for the next. Text of users is shielded
 * (marked-text.ts), so what it spells is never a marker.
 */
import { Worker } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { siblingModule } from "../../base/modules.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { ChatFormat, Conversation, ToolCallStyle, Turn } from "./conversation.ts";
import { Shield } from "./marked-text.ts";

export interface TemplateLimits {
  readonly timeMs: number;
  readonly outputCharacters: number;
}

/** By feel: a template takes milliseconds; a prompt of a million tokens has some megabytes. */
const LIMITS: TemplateLimits = { timeMs: 5000, outputCharacters: 16 * 2 ** 20 };
const TEMPLATE_CHARACTERS_MAX = 2 ** 20;
const WORKER_MEGABYTES = 256;

export interface RenderRequest {
  readonly id: number;
  readonly variables: Readonly<Record<string, unknown>>;
}

export type RenderResponse = { readonly id: number } & (
  | { readonly text: string }
  | { readonly problem: string }
);

interface Waiting {
  readonly resolve: (text: string) => void;
  readonly reject: (error: unknown) => void;
  readonly timer: NodeJS.Timeout;
}

export class TemplateFormat implements ChatFormat, AsyncDisposable {
  readonly name = "template";
  readonly toolCalls: ToolCallStyle;
  readonly #tokenizer: Tokenizer;
  readonly #template: string;
  readonly #limits: TemplateLimits;
  readonly #waiting = new Map<number, Waiting>();
  #worker: Worker | undefined;
  #nextId = 0;

  constructor(tokenizer: Tokenizer, template: string, limits: TemplateLimits = LIMITS) {
    if (template.length > TEMPLATE_CHARACTERS_MAX) {
      const problem = `the chat template has ${template.length} characters; at most 1048576`;
      throw new OperationalError("serving.template", problem);
    }
    this.#tokenizer = tokenizer;
    this.#template = template;
    this.#limits = limits;
    this.toolCalls = template.includes("```json") ? "v3" : "v3.1";
  }

  async render(conversation: Conversation): Promise<Int32Array> {
    const shield = new Shield(this.#tokenizer, JSON.stringify(conversation));
    const last = conversation.turns.at(-1);
    const prefix = last?.role === "assistant" && last.isPrefix ? last : undefined;
    const turns = prefix === undefined ? conversation.turns : conversation.turns.slice(0, -1);
    const { tools, thinking } = conversation;
    const text = await this.#render({
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

  #render(variables: RenderRequest["variables"]): Promise<string> {
    const id = this.#nextId++;
    const worker = this.#worker ?? this.#start();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#fail(templateError(`took longer than ${this.#limits.timeMs} ms`)),
        this.#limits.timeMs,
      );
      this.#waiting.set(id, { resolve, reject, timer });
      worker.postMessage({ id, variables } satisfies RenderRequest);
    });
  }

  #start(): Worker {
    const worker = new Worker(siblingModule("./template-worker", import.meta.url), {
      workerData: { template: this.#template, charactersMax: this.#limits.outputCharacters },
      resourceLimits: { maxOldGenerationSizeMb: WORKER_MEGABYTES },
    });
    worker.unref();
    worker.on("message", (response: RenderResponse) => {
      const waiting = this.#waiting.get(response.id);
      if (waiting === undefined) return;
      this.#waiting.delete(response.id);
      clearTimeout(waiting.timer);
      if ("text" in response) waiting.resolve(response.text);
      else waiting.reject(templateError(response.problem));
    });
    worker.on("error", () => this.#fail(templateError("needed more memory than it may have")));
    this.#worker = worker;
    return worker;
  }

  /** The worker is lost, and with it everything that waits for it. */
  #fail(error: OperationalError): void {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    void this.#worker?.terminate();
    this.#worker = undefined;
    for (const { reject, timer } of waiting) {
      clearTimeout(timer);
      reject(error);
    }
  }

  /** What still waits fails; a later rendering starts a thread again. */
  async close(): Promise<void> {
    const worker = this.#worker;
    this.#fail(new OperationalError("engine.closed", "the model is being unloaded"));
    await worker?.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function templateError(problem: string): OperationalError {
  return new OperationalError(
    "serving.invalid",
    `messages cannot be put into this model's chat template, which ${problem}`,
    { param: "messages" },
  );
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
