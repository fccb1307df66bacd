/** @file The scanner against the regular expressions it stands for, and its linear time. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { REPEATED, randomText } from "../../test/support/random-text.ts";
import { Random } from "../base/random.ts";
import { PieceScanner, PRE_TOKENIZER_PATTERNS } from "./pre-tokenizer.ts";

function scan(text: string): string[] {
  const scanner = new PieceScanner();
  scanner.reset(text);
  const pieces: string[] = [];
  while (scanner.next()) pieces.push(text.slice(scanner.start, scanner.end));
  return pieces;
}

/** The oracle: three isolating splits, one after the other, by JavaScript's regular expressions. */
function split(text: string): string[] {
  let pieces = [text];
  for (const pattern of PRE_TOKENIZER_PATTERNS) {
    const source = pattern
      .replaceAll("\\s", "\\p{White_Space}")
      .replaceAll("\\S", "\\P{White_Space}");
    const regex = new RegExp(source.replaceAll("\\-", "\\x2d"), "gu");
    pieces = pieces.flatMap((piece) => isolate(piece, regex));
  }
  return pieces;
}

function isolate(piece: string, regex: RegExp): string[] {
  const parts: string[] = [];
  let position = 0;
  for (const match of piece.matchAll(regex)) {
    parts.push(piece.slice(position, match.index), match[0]);
    position = match.index + match[0].length;
  }
  parts.push(piece.slice(position));
  return parts.filter((part) => part !== "");
}

test("pieces are those of the report's splits on code and prose", () => {
  assert.deepEqual(scan("const x1 = 12345;\n\n  return  don't;"), [
    ..."const, x,1, =, ,123,45,;\n\n, , return, , don,'t,;".split(","),
  ]);
  assert.deepEqual(scan("日本語・テスト123中文abc"), [
    "日本語",
    "・",
    "テスト",
    "123",
    "中文",
    "abc",
  ]);
  assert.deepEqual(scan(""), []);
});

test("pieces are those of the regular expressions on random Unicode", () => {
  for (let seed = 0; seed < 1500; seed++) {
    const text = randomText(new Random(seed, "pieces"), 1 + (seed % 40));
    assert.deepEqual(scan(text), split(text), `seed ${seed}: ${JSON.stringify(text)}`);
  }
});

test("every code point beside a letter or a blank is cut as the regular expressions cut it", () => {
  for (let first = 0; first < 0x110000; first += 0x400) {
    if (first >= 0xd800 && first < 0xe000) continue;
    if (first >= 0x32000 && first < 0xe0000) continue;
    let text = "";
    for (let i = 0; i < 0x400; i++) text += `${String.fromCodePoint(first + i)}${"a\n 1!"[i % 5]}`;
    assert.deepEqual(scan(text), split(text), `code points from ${first.toString(16)}`);
  }
});

test("one hostile megabyte is scanned in a bounded number of looks at each character", () => {
  for (const [name, unit] of REPEATED) {
    const text = unit.repeat(2 ** 20 / unit.length);
    const scanner = new PieceScanner();
    scanner.reset(text);
    while (scanner.next());
    assert.ok(
      scanner.steps <= 8 * text.length,
      `${name}: ${scanner.steps / text.length} looks each`,
    );
  }
});
