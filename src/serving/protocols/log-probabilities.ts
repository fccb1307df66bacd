/**
 * @file Log-probabilities as OpenAI's two APIs show them, and the texts of single tokens.
 *
 * A token may hold part of a character. Chats give its bytes beside a text with U+FFFD in it;
 * completions name it `bytes:\xe2\x82`.
 */
import type { TokenLogProbability } from "../../inference/engine/api.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";

/** Of a token that cannot be told; OpenAI's value for it, since JSON has no infinity. */
const LOWEST = -9999;

interface ChatEntry {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

export interface ChatLogProbability extends ChatEntry {
  readonly top_logprobs: readonly ChatEntry[];
}

export function chatLogProbability(
  tokenizer: Tokenizer,
  { token, logProbability, top }: TokenLogProbability,
): ChatLogProbability {
  const entry = (id: number, value: number): ChatEntry => ({
    token: tokenizer.decode([id]),
    logprob: Math.max(LOWEST, value),
    bytes: [...new TextEncoder().encode(tokenizer.addedToken(id)?.content ?? "")].concat([
      ...tokenizer.tokenBytes(id),
    ]),
  });
  return {
    ...entry(token, logProbability),
    top_logprobs: top.map((other) => entry(other.token, other.logProbability)),
  };
}

/** The legacy completions' four lists. */
export interface CompletionLogProbabilities {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  readonly text_offset: number[];
}

export function completionLogProbabilities(
  tokenizer: Tokenizer,
  entries: readonly (TokenLogProbability | null)[],
  tokens: readonly number[],
  offset: number,
): CompletionLogProbabilities {
  const names = tokens.map((token) => tokenText(tokenizer, token));
  const decoder = tokenizer.decoder({ skipSpecialTokens: true });
  let at = offset;
  const offsets = tokens.map((token) => {
    const before = at;
    at += decoder.push(token).length;
    return before;
  });
  return {
    tokens: names,
    token_logprobs: entries.map((entry) =>
      entry === null ? null : Math.max(LOWEST, entry.logProbability),
    ),
    top_logprobs: entries.map((entry) =>
      entry === null || entry.top.length === 0
        ? null
        : Object.fromEntries(
            entry.top.map(({ token, logProbability }) => [
              tokenText(tokenizer, token),
              Math.max(LOWEST, logProbability),
            ]),
          ),
    ),
    text_offset: offsets,
  };
}

function tokenText(tokenizer: Tokenizer, token: number): string {
  const added = tokenizer.addedToken(token);
  if (added !== undefined) return added.content;
  const bytes = tokenizer.tokenBytes(token);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return `bytes:${[...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
  }
}
