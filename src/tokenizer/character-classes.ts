/**
 * @file The classes of code points that the pre-tokenizer's splits name, as a table of bit sets.
 *
 * Built from the engine's own Unicode tables, 256 code points at a time and only where text goes;
 * `\s` is Unicode's White_Space (as in the Rust tokenizers' Oniguruma), not JavaScript's `\s`,
 * which adds U+FEFF and lacks U+0085. Another engine with a newer Unicode may class a newly
 * assigned character differently.
 */

/** `\p{L}` or `\p{M}`. */
export const LETTER = 1;
/** `\p{P}` or `\p{S}`. */
export const PUNCTUATION = 2;
/** White_Space. */
export const SPACE = 4;
/** `\r` or `\n`; also SPACE. */
export const NEWLINE = 8;
/** `\p{N}`. */
export const NUMBER = 16;
/** `[一-龥぀-ゟ゠-ヿ]`, the splits' own ranges: U+4E00–9FA5 and U+3040–30FF. */
export const CJK = 32;
/** `[A-Za-z]`; also LETTER. */
export const ASCII_LETTER = 64;
/** The 32 punctuation characters of ASCII; also PUNCTUATION. */
export const ASCII_PUNCTUATION = 128;

const PROPERTIES: readonly (readonly [RegExp, number])[] = [
  [/[\p{L}\p{M}]/u, LETTER],
  [/[\p{P}\p{S}]/u, PUNCTUATION],
  [/\p{White_Space}/u, SPACE],
  [/[\r\n]/u, NEWLINE],
  [/\p{N}/u, NUMBER],
  [/[\u4e00-\u9fa5\u3040-\u30ff]/u, CJK],
  [/[A-Za-z]/u, ASCII_LETTER],
  [/[!-/:-@[-`{-~]/u, ASCII_PUNCTUATION],
];

const BLOCK_BITS = 8;
const BLOCK_LENGTH = 1 << BLOCK_BITS;

/** The bit set of each code point; a block of 256 is filled when first asked for. */
export class CharacterClasses {
  readonly #blocks: (Uint8Array | undefined)[] = new Array(0x110000 / BLOCK_LENGTH);

  of(codePoint: number): number {
    const block = this.#blocks[codePoint >> BLOCK_BITS] ?? this.#fill(codePoint >> BLOCK_BITS);
    return block[codePoint & (BLOCK_LENGTH - 1)]!;
  }

  #fill(blockIndex: number): Uint8Array {
    const block = new Uint8Array(BLOCK_LENGTH);
    for (let i = 0; i < BLOCK_LENGTH; i++) {
      const character = String.fromCodePoint(blockIndex * BLOCK_LENGTH + i);
      for (const [pattern, bit] of PROPERTIES) if (pattern.test(character)) block[i]! |= bit;
    }
    this.#blocks[blockIndex] = block;
    return block;
  }
}
