/**
 * @file `usage` in OpenAI's form, with DeepSeek's cache fields beside it.
 *
 * The prompt of several choices is counted once. `prompt_cache_hit_tokens` and
 * `prompt_cache_miss_tokens` add up to `prompt_tokens`.
 */
import type { Outcome } from "../generation.ts";

export interface OpenAiUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  readonly completion_tokens_details: { readonly reasoning_tokens: number };
  readonly prompt_cache_hit_tokens: number;
  readonly prompt_cache_miss_tokens: number;
}

/** The usage of a request whose job j has prompt `promptOf[j]`. */
export function openAiUsage(
  outcomes: readonly (Outcome | undefined)[],
  choicesPerPrompt: number,
): OpenAiUsage {
  let [prompt, cached, completion, reasoning] = [0, 0, 0, 0];
  for (const [job, outcome] of outcomes.entries()) {
    if (outcome === undefined) continue;
    completion += outcome.usage.completionTokens;
    reasoning += outcome.reasoningTokens;
    if (job % choicesPerPrompt !== 0) continue;
    prompt += outcome.usage.promptTokens;
    cached += outcome.usage.cachedTokens;
  }
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached },
    completion_tokens_details: { reasoning_tokens: reasoning },
    prompt_cache_hit_tokens: cached,
    prompt_cache_miss_tokens: prompt - cached,
  };
}
