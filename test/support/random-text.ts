/**
 * @file Random text that hurts tokenizers: all planes, controls, combining marks, CJK, emoji,
 * digits, line ends.
 *
 * Well formed (no lone surrogates); each text mixes a few kinds so that their borders meet.
 */
import type { Random } from "../../src/base/random.ts";

type Kind = (random: Random) => string;

const pick =
  (items: readonly string[]): Kind =>
  (random) =>
    items[random.below(items.length)]!;
const range =
  (first: number, last: number): Kind =>
  (random) =>
    String.fromCodePoint(first + random.below(last - first + 1));

const KINDS: readonly Kind[] = [
  pick(["the", "value", "getElement", "HTML", "don't", "é", "naïve", "Straße", "ﬁ"]),
  pick([" ", "  ", "    ", "\t", "\u00a0", "\u3000", "\u2009", "\u0085", "\ufeff", "\u2028"]),
  pick(["\n", "\r\n", "\r", "\n\n", " \n", "\n  ", "\r\r\n", "\u000b", "\f"]),
  range(0x30, 0x39),
  pick(["2024", "3.14159", "1234567", "٣٤٥٦", "½", "Ⅷ", "²", "〇", "१२३४"]),
  range(0x21, 0x7e),
  pick(["...", "!?", "/**", "*/", "=>", "&&", "--", "”", "«", "€", "+", "_", "__a", ".b", "'s"]),
  range(0x00, 0x1f),
  range(0x80, 0x2ff),
  range(0x300, 0x36f),
  range(0x4e00, 0x9fff),
  range(0x3000, 0x30ff),
  pick(["👩‍👩‍👧", "🇨🇳", "😀", "👍🏽", "\u200d", "\ufe0f", "\u200b", "\u00ad"]),
  pick(["اَلسَّلَامُ", "हिन्दी", "ไทย", "한국어", "Ελληνικά", "שלום"]),
  range(0x10000, 0x1ffff),
  range(0x20000, 0x10ffff),
  (random) => {
    const codePoint = random.below(0x110000 - 0x800);
    return String.fromCodePoint(codePoint < 0xd800 ? codePoint : codePoint + 0x800);
  },
  pick(["<｜end▁of▁sentence｜>", "<think>", "<｜fim▁hole｜>", "Ġ", "Ċ", "\ufffd"]),
];

/** A text of `numParts` parts of a few random kinds. */
export function randomText(random: Random, numParts: number): string {
  const kinds = Array.from(
    { length: 1 + random.below(5) },
    () => KINDS[random.below(KINDS.length)]!,
  );
  let text = "";
  for (let i = 0; i < numParts; i++) {
    const part = kinds[random.below(kinds.length)]!(random);
    text += part.repeat(random.below(8) === 0 ? 1 + random.below(6) : 1);
  }
  return text;
}

/**
 * Hostile texts: `length` repetitions each, which regular expressions and naive merging find hard.
 */
export const REPEATED: readonly (readonly [name: string, unit: string])[] = [
  ["letters", "a"],
  ["spaces", " "],
  ["spaces before a word", "   x"],
  ["digits", "7"],
  ["punctuation", "!"],
  ["combining marks", "\u0301"],
  ["line feeds", "\n"],
  ["carriage returns and blanks", "\r "],
  ["tabs and line feeds", "\t\t\n"],
  ["no-break spaces", "\u00a0"],
  ["CJK", "中"],
  ["emoji", "😀"],
  ["controls", "\u0001"],
  ["zero-width joiners", "\u200d"],
];
