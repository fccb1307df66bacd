/**
 * @file Chat completions as a body and as chunks; the chunks of a choice add up to its message.
 *
 * Every chunk but the last of a stream that asked for usage carries `usage: null`, as the API says.
 */
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Sent, Shape } from "../answering.ts";
import type { Delta } from "../chat/answer-parser.ts";
import { type Failure, INTERNAL_FAILURE } from "../failure.ts";
import type { JobEvent, Outcome } from "../generation.ts";
import { type ChatLogProbability, chatLogProbability } from "./log-probabilities.ts";
import { openAiError } from "./openai-error.ts";
import { openAiUsage } from "./openai-usage.ts";

export const CHAT_REASONS: Readonly<Record<Outcome["reason"], string>> = {
  end: "stop",
  stop: "stop",
  length: "length",
  toolCalls: "tool_calls",
  aborted: "stop",
};

export interface ChatShapeOptions {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  readonly tokenizer: Tokenizer;
  readonly numChoices: number;
  readonly hasLogProbabilities: boolean;
  readonly isThinking: boolean;
  readonly includeUsage: boolean;
}

interface Call {
  readonly id: string;
  readonly type: "function";
  readonly function: { readonly name: string; arguments: string };
}

interface Choice {
  content: string;
  reasoning: string;
  readonly calls: Call[];
  readonly contentLogProbabilities: ChatLogProbability[];
  readonly reasoningLogProbabilities: ChatLogProbability[];
  outcome: Outcome | undefined;
}

export class ChatShape implements Shape {
  readonly #options: ChatShapeOptions;
  readonly #choices: readonly Choice[];

  constructor(options: ChatShapeOptions) {
    this.#options = options;
    this.#choices = Array.from({ length: options.numChoices }, () => ({
      content: "",
      reasoning: "",
      calls: [],
      contentLogProbabilities: [],
      reasoningLogProbabilities: [],
      outcome: undefined,
    }));
  }

  begin(): readonly Sent[] {
    return this.#choices.map((_, index) => this.#chunk(index, { role: "assistant", content: "" }));
  }

  take(index: number, event: JobEvent): readonly Sent[] {
    const choice = this.#choices[index]!;
    if (event.kind === "finished") {
      choice.outcome = event.outcome;
      return [this.#chunk(index, {}, CHAT_REASONS[event.outcome.reason])];
    }
    if (event.kind !== "delta") return [];
    const logprobs = this.#readLogProbabilities(choice, event);
    const deltas = event.deltas.map((delta) => this.#takeDelta(choice, delta, index));
    if (logprobs !== null && deltas.length === 0) deltas.push({ content: "" });
    // Log-probabilities go out with the first of the pieces that came with them.
    return deltas.map((delta, piece) =>
      this.#chunk(index, delta, null, piece === 0 ? logprobs : null),
    );
  }

  end(): readonly Sent[] {
    if (!this.#options.includeUsage) return [{ data: "[DONE]" }];
    const chunk = { ...this.#frame("chat.completion.chunk"), choices: [], usage: this.#usage() };
    return [{ data: chunk }, { data: "[DONE]" }];
  }

  body(): unknown {
    return {
      ...this.#frame("chat.completion"),
      choices: this.#choices.map((choice, index) => this.#wholeChoice(choice, index)),
      usage: this.#usage(),
    };
  }

  failure(error: Failure | undefined): Sent {
    return { data: openAiError(error ?? INTERNAL_FAILURE) };
  }

  #wholeChoice(choice: Choice, index: number): unknown {
    const { content, reasoning, calls, outcome } = choice;
    return {
      index,
      message: {
        role: "assistant",
        content: content === "" && calls.length > 0 ? null : content,
        refusal: null,
        ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
        ...(calls.length === 0 ? {} : { tool_calls: calls }),
      },
      logprobs: this.#options.hasLogProbabilities
        ? {
            content: choice.contentLogProbabilities,
            refusal: null,
            ...(this.#options.isThinking
              ? { reasoning_content: choice.reasoningLogProbabilities }
              : {}),
          }
        : null,
      finish_reason: CHAT_REASONS[outcome?.reason ?? "aborted"],
    };
  }

  #takeDelta(choice: Choice, delta: Delta, index: number): Record<string, unknown> {
    if (delta.kind === "content") {
      choice.content += delta.text;
      return { content: delta.text };
    }
    if (delta.kind === "reasoning") {
      choice.reasoning += delta.text;
      return { reasoning_content: delta.text };
    }
    if (delta.kind === "toolArguments") {
      choice.calls[delta.index]!.function.arguments += delta.text;
      return { tool_calls: [{ index: delta.index, function: { arguments: delta.text } }] };
    }
    const id = `call_${this.#options.id.replace(/^\w+-/, "")}_${index}_${delta.index}`;
    const call: Call = { id, type: "function", function: { name: delta.name, arguments: "" } };
    choice.calls.push(call);
    const begun = { ...call, function: { ...call.function } };
    return { tool_calls: [{ index: delta.index, ...begun }] };
  }

  #readLogProbabilities(
    choice: Choice,
    { logProbabilities, numReasoning }: Extract<JobEvent, { kind: "delta" }>,
  ): unknown {
    const { hasLogProbabilities, tokenizer, isThinking } = this.#options;
    if (!hasLogProbabilities || logProbabilities === null || logProbabilities.length === 0) {
      return null;
    }
    const shown = logProbabilities.map((entry) => chatLogProbability(tokenizer, entry));
    const [reasoning, content] = [shown.slice(0, numReasoning), shown.slice(numReasoning)];
    choice.contentLogProbabilities.push(...content);
    choice.reasoningLogProbabilities.push(...reasoning);
    return { content, refusal: null, ...(isThinking ? { reasoning_content: reasoning } : {}) };
  }

  #usage(): unknown {
    return openAiUsage(
      this.#choices.map(({ outcome }) => outcome),
      this.#options.numChoices,
    );
  }

  #frame(object: string): Record<string, unknown> {
    const { id, created, model } = this.#options;
    return { id, object, created, model, system_fingerprint: null };
  }

  #chunk(
    index: number,
    delta: Readonly<Record<string, unknown>>,
    finish_reason: string | null = null,
    logprobs: unknown = null,
  ): Sent {
    const choices = [{ index, delta, logprobs, finish_reason }];
    const usage = this.#options.includeUsage ? { usage: null } : {};
    return { data: { ...this.#frame("chat.completion.chunk"), choices, ...usage } };
  }
}
