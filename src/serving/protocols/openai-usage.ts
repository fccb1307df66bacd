/**
 * @file `usage` in OpenAI's form, with DeepSeek's cache fields beside it.
 *
 * The prompt of several choices is counted once. `prompt_cache_hit_tokens` and
 * `prompt_cache_miss_tokens` add up to `prompt_tokens`. Beside `cached_tokens` stands what is ours:
 * how many of them came from the disk, and where the prompt left one that was cached.
 */
import type { EngineUsage } from "../../inference/engine/api.ts";
import type { Outcome } from "../generation.ts";

/** What a prompt's cache did for it. */
export interface CacheDetails {
  readonly cached_tokens: number;
  /** Of those, the ones that memory lacked. */
  readonly disk_tokens: number;
  /** Of the first prompt that has one. */
  readonly near_miss: NearMissDetails | null;
}

interface NearMissDetails {
  /** Tokens that were the same. */
  readonly position: number;
  /** The token that was cached there, and the one that came. */
  readonly cached_token: number;
  readonly given_token: number;
}

export interface OpenAiUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: CacheDetails;
  readonly completion_tokens_details: { readonly reasoning_tokens: number };
  readonly prompt_cache_hit_tokens: number;
  readonly prompt_cache_miss_tokens: number;
}

/** The details of several prompts together. */
export function cacheDetails(usages: readonly EngineUsage[]): CacheDetails {
  const sum = (field: "cachedTokens" | "cachedFromDisk"): number =>
    usages.reduce((total, usage) => total + usage[field], 0);
  const nearMiss = usages.find((usage) => usage.nearMiss !== null)?.nearMiss ?? null;
  return {
    cached_tokens: sum("cachedTokens"),
    disk_tokens: sum("cachedFromDisk"),
    near_miss:
      nearMiss === null
        ? null
        : {
            position: nearMiss.position,
            cached_token: nearMiss.expected,
            given_token: nearMiss.given,
          },
  };
}

/** The usage of a request whose job j has prompt `promptOf[j]`. */
export function openAiUsage(
  outcomes: readonly (Outcome | undefined)[],
  choicesPerPrompt: number,
): OpenAiUsage {
  let [prompt, completion, reasoning] = [0, 0, 0];
  const ofPrompts: EngineUsage[] = [];
  for (const [job, outcome] of outcomes.entries()) {
    if (outcome === undefined) continue;
    completion += outcome.usage.completionTokens;
    reasoning += outcome.reasoningTokens;
    if (job % choicesPerPrompt !== 0) continue;
    prompt += outcome.usage.promptTokens;
    ofPrompts.push(outcome.usage);
  }
  const details = cacheDetails(ofPrompts);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: details,
    completion_tokens_details: { reasoning_tokens: reasoning },
    prompt_cache_hit_tokens: details.cached_tokens,
    prompt_cache_miss_tokens: prompt - details.cached_tokens,
  };
}
