/**
 * @file The added tokens of a vocabulary learned here: DeepSeek's spellings, first in the
 * vocabulary.
 *
 * Ids: 0 begin of sentence, 1 end of sentence (both as in DeepSeek-V3), 2–3 the roles of a chat,
 * 4–6 fill in the middle, 7–8 the thinking marks; then the 256 single bytes, then the learned
 * merges. Padding is the end of sentence, as in DeepSeek's tokenizer_config. The bars in the
 * spellings are U+FF5C and the low lines U+2581.
 *
 * `special` is the tokenizer.json sense: a decoder that skips special tokens keeps `<think>` and
 * `</think>`, because they are part of what a reasoning model says.
 */

/** One added token: matched whole, never split, never made by merges. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

/** What the roles of DeepSeek's added tokens are called in this code. */
export const SPECIAL_TOKENS = {
  bos: "<｜begin▁of▁sentence｜>",
  eos: "<｜end▁of▁sentence｜>",
  user: "<｜User｜>",
  assistant: "<｜Assistant｜>",
  fimBegin: "<｜fim▁begin｜>",
  fimHole: "<｜fim▁hole｜>",
  fimEnd: "<｜fim▁end｜>",
  thinkBegin: "<think>",
  thinkEnd: "</think>",
} as const;

export type SpecialTokenName = keyof typeof SPECIAL_TOKENS;

/**
 * The added tokens of a vocabulary learned here, ids 0 upwards in the order of `SPECIAL_TOKENS`.
 */
export function standardAddedTokens(): AddedToken[] {
  return Object.entries(SPECIAL_TOKENS).map(([name, content], id) => ({
    id,
    content,
    special: !name.startsWith("think"),
  }));
}
