/**
 * @file Anthropic's messages as a body and as events.
 *
 *     message_start (content_block_start content_block_delta* content_block_stop)*
 *     message_delta message_stop
 *
 * A block ends when one of another kind begins. `input` of a tool is an object in the body and text
 * in pieces in the stream; arguments that are not JSON are given as `{"_raw": text}`, since the API
 * has no form for them.
 */
import type { Sent, Shape } from "../answering.ts";
import type { Delta } from "../chat/answer-parser.ts";
import { type Failure, INTERNAL_FAILURE } from "../failure.ts";
import type { JobEvent, Outcome } from "../generation.ts";
import { anthropicError } from "./anthropic-error.ts";

const REASONS: Readonly<Record<Outcome["reason"], string>> = {
  end: "end_turn",
  stop: "stop_sequence",
  length: "max_tokens",
  toolCalls: "tool_use",
  aborted: "end_turn",
};

export interface MessageShapeOptions {
  readonly id: string;
  readonly model: string;
  readonly promptTokens: number;
}

interface Block {
  readonly kind: "thinking" | "text" | "tool_use";
  readonly id: string;
  readonly name: string;
  text: string;
}

export class MessageShape implements Shape {
  readonly #options: MessageShapeOptions;
  readonly #blocks: Block[] = [];
  #outcome: Outcome | undefined;
  #isOpen = false;
  #cachedTokens = 0;

  constructor(options: MessageShapeOptions) {
    this.#options = options;
  }

  begin(): readonly Sent[] {
    return [];
  }

  take(_job: number, event: JobEvent): readonly Sent[] {
    if (event.kind === "started") {
      this.#cachedTokens = event.cachedTokens;
      const message = { ...this.#frame(), content: [], usage: this.#usage() };
      return [named("message_start", { message }), named("ping", {})];
    }
    if (event.kind === "delta") return event.deltas.flatMap((delta) => this.#takeDelta(delta));
    if (event.kind === "finished") this.#outcome = event.outcome;
    return [];
  }

  end(): readonly Sent[] {
    const { stop_reason, stop_sequence } = this.#frame();
    return [
      ...this.#close(),
      named("message_delta", { delta: { stop_reason, stop_sequence }, usage: this.#usage() }),
      named("message_stop", {}),
    ];
  }

  body(): unknown {
    return { ...this.#frame(), content: this.#blocks.map(wholeBlock), usage: this.#usage() };
  }

  failure(error: Failure | undefined): Sent {
    return { event: "error", data: anthropicError(error ?? INTERNAL_FAILURE) };
  }

  #takeDelta(delta: Delta): readonly Sent[] {
    if (delta.kind === "toolCall") {
      const id = `toolu_${this.#options.id.replace(/^msg_/, "")}_${delta.index}`;
      return this.#open({ kind: "tool_use", id, name: delta.name, text: "" });
    }
    const kind =
      delta.kind === "reasoning" ? "thinking" : delta.kind === "content" ? "text" : "tool_use";
    const opened =
      this.#isOpen && this.#blocks.at(-1)?.kind === kind
        ? []
        : this.#open({ kind, id: "", name: "", text: "" });
    const index = this.#blocks.length - 1;
    this.#blocks[index]!.text += delta.text;
    const change =
      kind === "thinking"
        ? { type: "thinking_delta", thinking: delta.text }
        : kind === "text"
          ? { type: "text_delta", text: delta.text }
          : { type: "input_json_delta", partial_json: delta.text };
    return [...opened, named("content_block_delta", { index, delta: change })];
  }

  #open(block: Block): readonly Sent[] {
    const closed = this.#close();
    this.#blocks.push(block);
    this.#isOpen = true;
    const begun =
      block.kind === "tool_use" ? { ...wholeBlock(block), input: {} } : wholeBlock(block);
    const index = this.#blocks.length - 1;
    return [...closed, named("content_block_start", { index, content_block: begun })];
  }

  #close(): readonly Sent[] {
    if (!this.#isOpen) return [];
    this.#isOpen = false;
    return [named("content_block_stop", { index: this.#blocks.length - 1 })];
  }

  #frame(): Record<string, unknown> {
    const { id, model } = this.#options;
    const stop_reason = this.#outcome === undefined ? null : REASONS[this.#outcome.reason];
    const stop_sequence = this.#outcome?.stop ?? null;
    return { id, type: "message", role: "assistant", model, stop_reason, stop_sequence };
  }

  #usage(): unknown {
    const { promptTokens } = this.#options;
    return {
      input_tokens: promptTokens - this.#cachedTokens,
      cache_creation_input_tokens: 0,
      cache_read_input_tokens: this.#cachedTokens,
      output_tokens: this.#outcome?.usage.completionTokens ?? 0,
    };
  }
}

function wholeBlock({ kind, id, name, text }: Block): Record<string, unknown> {
  if (kind === "text") return { type: "text", text };
  if (kind === "thinking") return { type: "thinking", thinking: text, signature: "" };
  return { type: "tool_use", id, name, input: parsedInput(text) };
}

function parsedInput(text: string): unknown {
  try {
    return JSON.parse(text === "" ? "{}" : text);
  } catch {
    return { _raw: text };
  }
}

function named(type: string, fields: Readonly<Record<string, unknown>>): Sent {
  return { event: type, data: { type, ...fields } };
}
