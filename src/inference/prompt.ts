/**
 * @file Prompts that fit: the text before a cursor, or before and after a gap, cut to a number of
 * tokens.
 *
 *     continuation   <bos> prefix
 *     gap            <bos> <fim_begin> prefix <fim_hole> suffix <fim_end>
 *
 * Kept is what is nearest to the cursor. What was cut is told; nothing is cut silently, and nothing
 * if it all fits. Of a gap's room the suffix may have a quarter, and whatever the prefix does not
 * need. A continuation that was cut begins without <bos>: it is not the beginning of a document.
 * A prefix that may end inside a token is cut back for `healing` (healing.ts).
 */
import { assert } from "../base/errors.ts";
import { floorDiv } from "../base/integers.ts";
import { fimPrompt } from "../tokenizer/fim.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type Healing, healingOf } from "./healing.ts";

export interface Prompt {
  readonly tokens: Int32Array;
  /** Tokens cut from the beginning of the prefix. */
  readonly numPrefixCut: number;
  /** Tokens cut from the end of the suffix. */
  readonly numSuffixCut: number;
  /** The end of the prefix, which is not in `tokens`: generation begins by saying it again. */
  readonly healing: Healing | null;
}

/** The prompt to go on after `prefix`, in at most `tokensMax` tokens. */
export function continuationPrompt(
  tokenizer: Tokenizer,
  prefix: string,
  tokensMax: number,
): Prompt {
  assert(tokensMax >= 1, `tokensMax (${tokensMax}) must be at least 1`);
  const encoded = tokenizer.encode(prefix);
  const isWhole = encoded.length < tokensMax;
  const numPrefixCut = isWhole ? 0 : encoded.length - tokensMax;
  const kept = encoded.subarray(numPrefixCut);
  // Without <bos> the first token stays, for a sequence begins with one.
  const healing = healingOf(tokenizer, isWhole ? kept : kept.subarray(1));
  const said = kept.subarray(0, kept.length - (healing?.numTokens ?? 0));
  const tokens = concatenate([isWhole ? [tokenizer.bosId] : [], said]);
  return { tokens, numPrefixCut, numSuffixCut: 0, healing };
}

/** The prompt to fill the gap between `prefix` and `suffix`, in at most `tokensMax` tokens. */
export function gapPrompt(
  tokenizer: Tokenizer,
  { prefix, suffix }: { readonly prefix: string; readonly suffix: string },
  tokensMax: number,
): Prompt {
  const frame = fimPrompt(tokenizer, { prefix: "", suffix: "" });
  const room = tokensMax - frame.length;
  assert(room >= 1, `tokensMax (${tokensMax}) must leave room beside ${frame.length} markers`);
  const before = tokenizer.encode(prefix);
  const after = tokenizer.encode(suffix);
  const suffixRoom = Math.max(floorDiv(room, 4), room - before.length);
  const numSuffixCut = Math.max(0, after.length - suffixRoom);
  const keptAfter = after.subarray(0, after.length - numSuffixCut);
  const numPrefixCut = Math.max(0, before.length - (room - keptAfter.length));
  const keptBefore = before.subarray(numPrefixCut);
  const healing = healingOf(tokenizer, keptBefore);
  const said = keptBefore.subarray(0, keptBefore.length - (healing?.numTokens ?? 0));
  const [bos, begin, hole, end] = frame;
  const tokens = concatenate([[bos!, begin!], said, [hole!], keptAfter, [end!]]);
  return { tokens, numPrefixCut, numSuffixCut, healing };
}

function concatenate(parts: readonly ArrayLike<number>[]): Int32Array {
  const tokens = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    tokens.set(part, at);
    at += part.length;
  }
  return tokens;
}
