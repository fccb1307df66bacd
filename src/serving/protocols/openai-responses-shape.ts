/**
 * @file Responses as a body and as events, numbered from 0.
 *
 *     response.created response.in_progress
 *     (output_item.added … deltas … output_item.done)*
 *     response.completed | response.incomplete
 *
 * An item ends when one of another kind begins. Reasoning is given in full, as `reasoning_text`.
 */
import type { Sent, Shape } from "../answering.ts";
import type { Delta } from "../chat/answer-parser.ts";
import type { ChatAsk } from "../chat-request.ts";
import { type Failure, INTERNAL_FAILURE } from "../failure.ts";
import type { JobEvent, Outcome } from "../generation.ts";
import { cacheDetails } from "./openai-usage.ts";

export interface ResponseShapeOptions {
  readonly id: string;
  readonly createdAt: number;
  readonly model: string;
  readonly instructions: string | null;
  readonly ask: ChatAsk;
  /** Fields of the request that the response repeats. */
  readonly echoed: Readonly<Record<string, unknown>>;
}

interface Item {
  readonly kind: "reasoning" | "message" | "function_call";
  readonly id: string;
  readonly name: string;
  text: string;
}

const PART_TYPES = { reasoning: "reasoning_text", message: "output_text" } as const;

export class ResponseShape implements Shape {
  readonly #options: ResponseShapeOptions;
  readonly #items: Item[] = [];
  #outcome: Outcome | undefined;
  #isOpen = false;
  #sequence = 0;

  constructor(options: ResponseShapeOptions) {
    this.#options = options;
  }

  begin(): readonly Sent[] {
    const response = this.#response("in_progress");
    return [
      this.#event("response.created", { response }),
      this.#event("response.in_progress", { response }),
    ];
  }

  take(_job: number, event: JobEvent): readonly Sent[] {
    if (event.kind === "delta") return event.deltas.flatMap((delta) => this.#takeDelta(delta));
    if (event.kind === "finished") this.#outcome = event.outcome;
    return [];
  }

  end(): readonly Sent[] {
    const closed = this.#close();
    const status = this.#status();
    return [...closed, this.#event(`response.${status}`, { response: this.#response(status) })];
  }

  body(): unknown {
    return this.#response(this.#status());
  }

  failure(error: Failure | undefined): Sent {
    const { code, message, param } = error ?? INTERNAL_FAILURE;
    return this.#event("error", { code, message, param });
  }

  #takeDelta(delta: Delta): readonly Sent[] {
    if (delta.kind === "toolCall") return this.#open("function_call", delta.name);
    const kind =
      delta.kind === "reasoning"
        ? "reasoning"
        : delta.kind === "content"
          ? "message"
          : "function_call";
    const opened = this.#isOpen && this.#items.at(-1)?.kind === kind ? [] : this.#open(kind, "");
    const item = this.#items.at(-1)!;
    item.text += delta.text;
    return [...opened, this.#deltaEvent(item, delta.text)];
  }

  #deltaEvent(item: Item, delta: string): Sent {
    const place = this.#place(item);
    if (item.kind === "function_call") {
      return this.#event("response.function_call_arguments.delta", { ...place, delta });
    }
    const part = { ...place, content_index: 0, delta };
    return item.kind === "message"
      ? this.#event("response.output_text.delta", { ...part, logprobs: [] })
      : this.#event("response.reasoning_text.delta", part);
  }

  #open(kind: Item["kind"], name: string): readonly Sent[] {
    const closed = this.#close();
    const prefix = { reasoning: "rs", message: "msg", function_call: "fc" }[kind];
    const item: Item = {
      kind,
      name,
      id: `${prefix}_${this.#options.id}_${this.#items.length}`,
      text: "",
    };
    this.#items.push(item);
    this.#isOpen = true;
    const output_index = this.#items.length - 1;
    const begun = {
      ...this.#itemBody(item, "in_progress"),
      ...(kind === "function_call" ? {} : { content: [] }),
    };
    const added = this.#event("response.output_item.added", { output_index, item: begun });
    if (kind === "function_call") return [...closed, added];
    const part = { ...this.#place(item), content_index: 0, part: partBody(item) };
    return [...closed, added, this.#event("response.content_part.added", part)];
  }

  #close(): readonly Sent[] {
    if (!this.#isOpen) return [];
    this.#isOpen = false;
    const item = this.#items.at(-1)!;
    const place = this.#place(item);
    const output_index = place.output_index;
    const whole = this.#itemBody(item, "completed");
    if (item.kind === "function_call") {
      const ended = { ...place, name: item.name, arguments: item.text };
      return [
        this.#event("response.function_call_arguments.done", ended),
        this.#event("response.output_item.done", { output_index, item: whole }),
      ];
    }
    const part = { ...place, content_index: 0 };
    const logprobs = item.kind === "message" ? { logprobs: [] } : {};
    return [
      this.#event(`response.${PART_TYPES[item.kind]}.done`, {
        ...part,
        text: item.text,
        ...logprobs,
      }),
      this.#event("response.content_part.done", { ...part, part: partBody(item) }),
      this.#event("response.output_item.done", { output_index, item: whole }),
    ];
  }

  #place({ id }: Item): { readonly item_id: string; readonly output_index: number } {
    return { item_id: id, output_index: this.#items.length - 1 };
  }

  #event(type: string, fields: Readonly<Record<string, unknown>>): Sent {
    return { event: type, data: { type, sequence_number: this.#sequence++, ...fields } };
  }

  #itemBody(item: Item, status: string): Record<string, unknown> {
    const { kind, id, name, text } = item;
    if (kind === "function_call") {
      return { type: kind, id, call_id: id.replace(/^fc/, "call"), name, arguments: text, status };
    }
    if (kind === "reasoning") {
      return { type: kind, id, summary: [], content: [partBody(item)], status };
    }
    return { type: kind, id, role: "assistant", status, content: [partBody(item)] };
  }

  #status(): "completed" | "incomplete" {
    return this.#outcome?.reason === "length" ? "incomplete" : "completed";
  }

  #response(status: string): unknown {
    const { id, createdAt, model, instructions, ask, echoed } = this.#options;
    const isEnded = status !== "in_progress";
    return {
      id: `resp_${id}`,
      object: "response",
      created_at: createdAt,
      completed_at: isEnded ? createdAt : null,
      status,
      background: false,
      error: null,
      incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
      instructions,
      max_output_tokens: ask.maxTokens,
      model,
      output: isEnded ? this.#items.map((item) => this.#itemBody(item, "completed")) : [],
      parallel_tool_calls: true,
      previous_response_id: null,
      reasoning: { effort: ask.conversation.thinking ? "medium" : "none", summary: null },
      service_tier: "default",
      store: false,
      temperature: ask.sampling.temperature,
      top_p: ask.sampling.topP,
      truncation: "disabled",
      usage: isEnded ? this.#usage() : null,
      user: null,
      metadata: {},
      ...echoed,
    };
  }

  #usage(): unknown {
    const { usage, reasoningTokens } = this.#outcome ?? { usage: undefined, reasoningTokens: 0 };
    const [input, output] = [usage?.promptTokens ?? 0, usage?.completionTokens ?? 0];
    return {
      input_tokens: input,
      input_tokens_details: cacheDetails(usage === undefined ? [] : [usage]),
      output_tokens: output,
      output_tokens_details: { reasoning_tokens: reasoningTokens },
      total_tokens: input + output,
    };
  }
}

function partBody({ kind, text }: Item): unknown {
  return kind === "message"
    ? { type: "output_text", text, annotations: [], logprobs: [] }
    : { type: "reasoning_text", text };
}
