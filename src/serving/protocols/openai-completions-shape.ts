/** @file Completions as a body and as chunks; with `echo` the prompt comes first, as one chunk. */
import type { TokenLogProbability } from "../../inference/engine/api.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Sent, Shape } from "../answering.ts";
import { type Failure, INTERNAL_FAILURE } from "../failure.ts";
import type { JobEvent, Outcome } from "../generation.ts";
import {
  type CompletionLogProbabilities,
  completionLogProbabilities,
} from "./log-probabilities.ts";
import { CHAT_REASONS } from "./openai-chat-shape.ts";
import type { CompletionPrompt } from "./openai-completions.ts";
import { openAiError } from "./openai-error.ts";
import { openAiUsage } from "./openai-usage.ts";

export interface CompletionShapeOptions {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  readonly tokenizer: Tokenizer;
  readonly prompts: readonly CompletionPrompt[];
  readonly numChoices: number;
  readonly isEchoed: boolean;
  readonly hasLogProbabilities: boolean;
  readonly includeUsage: boolean;
}

interface Choice {
  text: string;
  /** Where the next token begins, in the choice's text. */
  offset: number;
  readonly logprobs: CompletionLogProbabilities;
  outcome: Outcome | undefined;
}

export class CompletionShape implements Shape {
  readonly #options: CompletionShapeOptions;
  readonly #choices: readonly Choice[];

  constructor(options: CompletionShapeOptions) {
    this.#options = options;
    this.#choices = options.prompts.flatMap(({ text }) =>
      Array.from({ length: options.numChoices }, () => ({
        text: options.isEchoed ? text : "",
        offset: 0,
        logprobs: { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] },
        outcome: undefined,
      })),
    );
  }

  begin(): readonly Sent[] {
    if (!this.#options.isEchoed) return [];
    return this.#choices.map(({ text }, index) => this.#chunk(index, text));
  }

  take(index: number, event: JobEvent): readonly Sent[] {
    const choice = this.#choices[index]!;
    if (event.kind === "prompt") {
      const logprobs = this.#read(choice, event.logProbabilities, this.#promptOf(index));
      return [this.#chunk(index, "", null, logprobs)];
    }
    if (event.kind === "finished") {
      choice.outcome = event.outcome;
      return [this.#chunk(index, "", CHAT_REASONS[event.outcome.reason])];
    }
    if (event.kind !== "delta") return [];
    const text = event.deltas.map((delta) => ("text" in delta ? delta.text : "")).join("");
    const logprobs = this.#read(choice, event.logProbabilities, event.tokens);
    choice.text += text;
    return text === "" && logprobs === null ? [] : [this.#chunk(index, text, null, logprobs)];
  }

  end(): readonly Sent[] {
    if (!this.#options.includeUsage) return [{ data: "[DONE]" }];
    const usage = { ...this.#frame(), choices: [], usage: this.#usage() };
    return [{ data: usage }, { data: "[DONE]" }];
  }

  body(): unknown {
    const choices = this.#choices.map(({ text, logprobs, outcome }, index) => ({
      index,
      text,
      logprobs: this.#options.hasLogProbabilities ? logprobs : null,
      finish_reason: CHAT_REASONS[outcome?.reason ?? "aborted"],
    }));
    return { ...this.#frame(), choices, usage: this.#usage() };
  }

  failure(error: Failure | undefined): Sent {
    return { data: openAiError(error ?? INTERNAL_FAILURE) };
  }

  #promptOf(job: number): readonly number[] {
    return [...this.#options.prompts[Math.floor(job / this.#options.numChoices)]!.tokens];
  }

  /** Adds to the choice's lists; what is new. */
  #read(
    choice: Choice,
    entries: readonly (TokenLogProbability | null)[] | null,
    tokens: readonly number[],
  ): CompletionLogProbabilities | null {
    const { tokenizer, hasLogProbabilities } = this.#options;
    if (!hasLogProbabilities || entries === null || entries.length === 0) return null;
    const added = completionLogProbabilities(tokenizer, entries, tokens, choice.offset);
    choice.offset += tokenizer.decode(tokens, { skipSpecialTokens: true }).length;
    const { logprobs } = choice;
    logprobs.tokens.push(...added.tokens);
    logprobs.token_logprobs.push(...added.token_logprobs);
    logprobs.top_logprobs.push(...added.top_logprobs);
    logprobs.text_offset.push(...added.text_offset);
    return added;
  }

  #usage(): unknown {
    const outcomes = this.#choices.map(({ outcome }) => outcome);
    return openAiUsage(outcomes, this.#options.numChoices);
  }

  #frame(): Record<string, unknown> {
    const { id, created, model } = this.#options;
    return { id, object: "text_completion", created, model, system_fingerprint: null };
  }

  #chunk(
    index: number,
    text: string,
    finish_reason: string | null = null,
    logprobs: CompletionLogProbabilities | null = null,
  ): Sent {
    const choices = [{ index, text, logprobs, finish_reason }];
    const usage = this.#options.includeUsage ? { usage: null } : {};
    return { data: { ...this.#frame(), choices, ...usage } };
  }
}
