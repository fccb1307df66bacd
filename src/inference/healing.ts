/**
 * @file Token healing: a prompt that ends inside a token is cut back, and what was cut is said
 * again.
 *
 * A text ends where somebody stopped typing, not where a token ends: after "for (const " a model
 * has never seen a word begin without its space. If some token of the vocabulary could reach over
 * the prompt's end, the last piece of the text (pre-tokenizer.ts) is left out, or as much as the
 * token reaches over if that is more, and the first tokens generated must spell the bytes that were
 * left out: each begins with what is left of them, or is a beginning of it. The bytes are exact,
 * inside characters too.
 */
import { assert } from "../base/errors.ts";
import { PieceScanner } from "../tokenizer/pre-tokenizer.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

/** Tokens that are looked at: no token of a vocabulary is as long as so many. */
const TOKENS_MAX = 128;
/** A piece that fills the tokens looked at is left alone if it is longer than this. */
const PIECE_BYTES_MAX = 256;

/** What was left out of a prompt; it can be copied between threads. */
export interface Healing {
  /** At least one byte. */
  readonly bytes: Uint8Array;
  readonly numTokens: number;
}

/**
 * The end of `tokens`, a text's, that has to be said again; null if no token reaches over it. Added
 * tokens have no bytes and are never left out, nor is anything before them.
 */
export function healingOf(tokenizer: Tokenizer, tokens: Int32Array): Healing | null {
  const text = spell(tokenizer, lastText(tokenizer, tokens));
  let reach = 0;
  for (let token = 0; token < tokenizer.vocabSize; token++) {
    reach = reachOver(text, tokenizer.tokenBytes(token), reach);
  }
  if (reach === 0) return null;
  const least = Math.max(reach, lastPieceBytes(text));
  let numTokens = 0;
  for (let cut = 0; cut < least; numTokens++) {
    cut += tokenizer.countBytes(tokens[tokens.length - 1 - numTokens]!);
  }
  return { bytes: spell(tokenizer, tokens.subarray(tokens.length - numTokens)), numTokens };
}

/** The last tokens, up to an added one. */
function lastText(tokenizer: Tokenizer, tokens: Int32Array): Int32Array {
  let first = tokens.length;
  const least = Math.max(0, tokens.length - TOKENS_MAX);
  while (first > least && tokenizer.countBytes(tokens[first - 1]!) > 0) first--;
  return tokens.subarray(first);
}

/**
 * Bytes of the piece that the text ends in: merges never cross its beginning, but what follows may
 * change them all. 0 if it is longer than what was looked at.
 */
function lastPieceBytes(bytes: Uint8Array): number {
  // A text cut inside a character begins with its last bytes, which are no text.
  const first = bytes.findIndex((byte) => byte >> 6 !== 0b10);
  const text = new TextDecoder().decode(bytes.subarray(Math.max(0, first)));
  const scanner = new PieceScanner();
  scanner.reset(text);
  let last = 0;
  while (scanner.next()) last = scanner.start;
  return last === 0 && bytes.length > PIECE_BYTES_MAX
    ? 0
    : new TextEncoder().encode(text.slice(last)).length;
}

/**
 * The most bytes of the end of `text`, above `least`, that `token` begins with and goes on from.
 */
function reachOver(text: Uint8Array, token: Uint8Array, least: number): number {
  for (let reach = Math.min(text.length, token.length - 1); reach > least; reach--) {
    const tail = text.length - reach;
    let same = 0;
    while (same < reach && text[tail + same] === token[same]) same++;
    if (same === reach) return reach;
  }
  return least;
}

function spell(tokenizer: Tokenizer, tokens: Int32Array): Uint8Array {
  return Uint8Array.from([...tokens].flatMap((token) => [...tokenizer.tokenBytes(token)]));
}

/** The bytes that are still to be said again. */
export class HealingState {
  readonly #tokenizer: Tokenizer;
  #left: Uint8Array;

  constructor(tokenizer: Tokenizer, { bytes }: Healing) {
    this.#tokenizer = tokenizer;
    this.#left = bytes;
  }

  get isDone(): boolean {
    return this.#left.length === 0;
  }

  /** −∞ for every token that does not spell what is left. */
  maskOut(logits: Float32Array): void {
    if (this.isDone) return;
    for (let token = 0; token < logits.length; token++) {
      if (!this.#allows(this.#tokenizer.tokenBytes(token)))
        logits[token] = Number.NEGATIVE_INFINITY;
    }
  }

  /** Take a token that is allowed; returns how many of its bytes, the first ones, repeat. */
  accept(token: number): number {
    if (this.isDone) return 0;
    const bytes = this.#tokenizer.tokenBytes(token);
    assert(this.#allows(bytes), `token ${token} does not spell the prompt's end`);
    const repeated = Math.min(bytes.length, this.#left.length);
    this.#left = this.#left.subarray(repeated);
    return repeated;
  }

  #allows(bytes: Uint8Array): boolean {
    const shared = Math.min(bytes.length, this.#left.length);
    if (shared === 0) return false;
    for (let i = 0; i < shared; i++) if (bytes[i] !== this.#left[i]) return false;
    return true;
  }
}
