/**
 * @file The pre-tokenizer of DeepSeek-V3: text into pieces that merges never cross, in linear time.
 *
 * Three splits in order, each isolating its matches inside the pieces of the one before (report
 * §4.1 and the released tokenizer.json): runs of at most three digits; runs of Chinese or Japanese
 * characters; then words, punctuation and white space. tokenizer.json spells them as regular
 * expressions (`PRE_TOKENIZER_PATTERNS`). Here they are one scanner over a table of character
 * classes: a regular expression engine may go back over a long run of white space for every
 * character of it and keeps a stack as long as the run. `steps` counts the characters looked at, so
 * that a test can hold the scanner to linear time.
 *
 * Refuses lone surrogates by contract: the caller passes well-formed text.
 */
import {
  ASCII_LETTER,
  ASCII_PUNCTUATION,
  CharacterClasses,
  CJK,
  LETTER,
  NEWLINE,
  NUMBER,
  PUNCTUATION,
  SPACE,
} from "./character-classes.ts";

/** The three splits, as tokenizer.json has them; `PieceScanner` does exactly what they say. */
export const PRE_TOKENIZER_PATTERNS: readonly string[] = [
  "\\p{N}{1,3}",
  "[一-龥぀-ゟ゠-ヿ]+",
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" +
    "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+" +
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
];

const DIGITS_MAX = 3;

/**
 * Walks the pieces of one text: `reset(text)`, then `next()` until false; `start` and `end` are
 * UTF-16 offsets.
 */
export class PieceScanner {
  start = 0;
  end = 0;
  /** Characters looked at since construction. */
  steps = 0;
  readonly #classes = new CharacterClasses();
  #text = "";
  /** The end of the current region: a stretch without digits that is all CJK or has none. */
  #regionEnd = 0;

  reset(text: string): void {
    this.#text = text;
    this.start = this.end = this.#regionEnd = 0;
  }

  next(): boolean {
    const start = this.end;
    if (start >= this.#text.length) return false;
    this.start = start;
    if (start >= this.#regionEnd) {
      const first = this.#classAt(start);
      if ((first & NUMBER) !== 0) {
        this.end = this.#regionEnd = this.#digitsEnd(start);
        return true;
      }
      // A character is CJK and a number never; the mask tells which of the two kinds of region this
      // is.
      this.#regionEnd = this.#runEnd(start, this.#text.length, CJK | NUMBER, first & CJK);
    }
    this.end = this.#wordEnd(start, this.#regionEnd);
    return true;
  }

  #classAt(position: number): number {
    this.steps++;
    return this.#classes.of(this.#text.codePointAt(position)!);
  }

  /** Where the run of characters with `(class & mask) === value` that starts at `position` ends. */
  #runEnd(position: number, limit: number, mask: number, value: number): number {
    let end = position;
    while (end < limit) {
      const codePoint = this.#text.codePointAt(end)!;
      if ((this.#classes.of(codePoint) & mask) !== value) break;
      end += codePoint > 0xffff ? 2 : 1;
    }
    this.steps += end - position + 1;
    return end;
  }

  #after(position: number): number {
    return position + (this.#text.codePointAt(position)! > 0xffff ? 2 : 1);
  }

  #digitsEnd(start: number): number {
    let end = start;
    for (let i = 0; i < DIGITS_MAX && end < this.#text.length; i++) {
      if ((this.#classAt(end) & NUMBER) === 0) break;
      end = this.#after(end);
    }
    return end;
  }

  /** The end of the match of the third split at `start`, or of the gap before its next match. */
  #wordEnd(start: number, limit: number): number {
    let gapEnd = start;
    while (gapEnd < limit) {
      const end = this.#matchEnd(gapEnd, limit);
      if (end > gapEnd) return gapEnd === start ? end : gapEnd;
      gapEnd = this.#after(gapEnd);
    }
    return limit;
  }

  /**
   * The end of the third split's match at `at`; `at` itself where there is none. The alternatives
   * in order.
   */
  #matchEnd(at: number, limit: number): number {
    const first = this.#classAt(at);
    const second = this.#after(at);
    const following = second < limit ? this.#classAt(second) : 0;
    if ((first & ASCII_PUNCTUATION) !== 0 && (following & ASCII_LETTER) !== 0) {
      return this.#runEnd(second, limit, ASCII_LETTER, ASCII_LETTER);
    }
    if ((first & LETTER) !== 0) return this.#runEnd(at, limit, LETTER, LETTER);
    if ((first & (NEWLINE | PUNCTUATION)) === 0 && (following & LETTER) !== 0) {
      return this.#runEnd(second, limit, LETTER, LETTER);
    }
    const isBlank = this.#text.charCodeAt(at) === 0x20;
    if ((first & PUNCTUATION) !== 0 || (isBlank && (following & PUNCTUATION) !== 0)) {
      const end = this.#runEnd(isBlank ? second : at, limit, PUNCTUATION, PUNCTUATION);
      return this.#runEnd(end, limit, NEWLINE, NEWLINE);
    }
    return (first & SPACE) !== 0 ? this.#spaceEnd(at, limit) : at;
  }

  /**
   * `\s*[\r\n]+|\s+(?!\S)|\s+`: through the last line break; else all but the last blank before a
   * word; else all.
   */
  #spaceEnd(at: number, limit: number): number {
    const end = this.#runEnd(at, limit, SPACE, SPACE);
    this.steps += end - at;
    for (let last = end - 1; last >= at; last--) {
      const code = this.#text.charCodeAt(last);
      if (code === 0x0a || code === 0x0d) return last + 1;
    }
    // Every White_Space character is one UTF-16 unit long.
    return end === limit || end - at === 1 ? end : end - 1;
  }
}
