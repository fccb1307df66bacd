/**
 * @file Documents cut into spans: what the loader shuffles.
 *
 * A corpus may be a few huge files; shuffled whole, a file would fill hundreds of batches in a row.
 * So a document of more than `tokensMax` tokens is cut into spans of nearly equal length, each cut
 * after a line end when one is near, else between characters; inside one only where dozens of
 * tokens in a row begin inside characters (a learned token may hold the end of one character and
 * the start of the next). With `tokensMax` infinite a span is a document, as in the report.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { TokenSource } from "./token-source.ts";

/** How far back from the even cut a line end is looked for; chosen by feel, about three lines. */
const LINE_SEARCH_TOKENS = 48;
const NEWLINE = 0x0a;

/** Spans in document order; empty documents have none. */
export interface Spans {
  readonly document: Uint32Array;
  readonly start: Uint32Array;
  readonly count: Uint32Array;
}

/** What a cut may stand before and after, by token id. */
export class CutRules {
  readonly #startsCharacter: Uint8Array;
  readonly #endsLine: Uint8Array;

  constructor(tokenizer: Tokenizer) {
    this.#startsCharacter = new Uint8Array(tokenizer.vocabSize);
    this.#endsLine = new Uint8Array(tokenizer.vocabSize);
    for (let id = 0; id < tokenizer.vocabSize; id++) {
      const bytes = tokenizer.tokenBytes(id);
      this.#startsCharacter[id] = bytes.length > 0 && (bytes[0]! & 0xc0) !== 0x80 ? 1 : 0;
      this.#endsLine[id] = bytes.at(-1) === NEWLINE ? 1 : 0;
    }
  }

  /** The lengths of the pieces, each at most `tokensMax`, that `numTokens` tokens are cut into. */
  cut(
    numTokens: number,
    tokensMax: number,
    read: (start: number, count: number) => Int32Array,
  ): number[] {
    assert(tokensMax >= 8, `tokensMax (${tokensMax}) must be >= 8`);
    const lengths: number[] = [];
    for (let start = 0; start < numTokens; ) {
      const left = numTokens - start;
      const even = left <= tokensMax ? left : ceilDiv(left, ceilDiv(left, tokensMax));
      const length = even === left ? left : this.#lengthNear(start, even, read);
      lengths.push(length);
      start += length;
    }
    return lengths;
  }

  #lengthNear(
    start: number,
    even: number,
    read: (start: number, count: number) => Int32Array,
  ): number {
    const searched = Math.min(LINE_SEARCH_TOKENS, even - 1);
    const searchedForLines = Math.min(LINE_SEARCH_TOKENS, even >> 1);
    // The token after the cut is read too: it tells whether a character begins there.
    const ids = read(start + even - searched, searched + 1);
    for (let i = searched; i > searched - searchedForLines; i--) {
      if (this.#endsLine[ids[i - 1]!] === 1) return even - searched + i;
    }
    for (let i = searched; i > 0; i--) {
      if (this.#startsCharacter[ids[i]!] === 1) return even - searched + i;
    }
    return even;
  }
}

export function cutIntoSpans(source: TokenSource, rules: CutRules, tokensMax: number): Spans {
  const document: number[] = [];
  const start: number[] = [];
  const count: number[] = [];
  for (let d = 0; d < source.numDocuments; d++) {
    let position = 0;
    const read = (from: number, length: number): Int32Array => source.read(d, from, length);
    for (const length of rules.cut(source.documentTokens(d), tokensMax, read)) {
      document.push(d);
      start.push(position);
      count.push(length);
      position += length;
    }
  }
  return {
    document: Uint32Array.from(document),
    start: Uint32Array.from(start),
    count: Uint32Array.from(count),
  };
}
