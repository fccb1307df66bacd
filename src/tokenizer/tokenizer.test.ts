/** @file Encoding and decoding: a naive oracle, no loss, added tokens, streams, linear time. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { REPEATED, randomText } from "../../test/support/random-text.ts";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { trainBpe } from "./bpe-train.ts";
import { PieceScanner } from "./pre-tokenizer.ts";
import { SPECIAL_TOKENS } from "./special-tokens.ts";
import { learnedVocabulary, Tokenizer } from "./tokenizer.ts";

function learnedTokenizer(texts: readonly string[], vocabSize: number): Tokenizer {
  return new Tokenizer(learnedVocabulary(trainBpe(texts, { vocabSize, numAddedTokens: 9 })));
}

const random = new Random(11, "tokenizer");
const texts = Array.from({ length: 300 }, () => randomText(random, 60));
const runs = ["a", " ", "!", "\n", "\u0301", "中"].map((unit) => unit.repeat(600));
const tokenizer = learnedTokenizer([...texts, ...runs, ...runs], 1200);

/** The definition: the lowest rank in the piece, leftmost, until no pair has a rank. */
function encodeNaively(text: string): number[] {
  const { left, right, merged } = tokenizer.vocabulary;
  const rankOf = new Map(Array.from(left, (id, rank) => [`${id} ${right[rank]}`, rank]));
  const scanner = new PieceScanner();
  scanner.reset(text);
  const out: number[] = [];
  while (scanner.next()) {
    const bytes = new TextEncoder().encode(text.slice(scanner.start, scanner.end));
    const ids = Array.from(bytes, (byte) => byte + 9);
    for (;;) {
      const ranks = ids.slice(1).map((id, i) => rankOf.get(`${ids[i]} ${id}`) ?? Infinity);
      const best = ranks.reduce((lowest, rank, i) => (rank < ranks[lowest]! ? i : lowest), 0);
      if (ranks.length === 0 || ranks[best] === Infinity) break;
      ids.splice(best, 2, merged[ranks[best]!]!);
    }
    out.push(...ids);
  }
  return out;
}

test("tokens are those of the naive merging, for short and long pieces", () => {
  for (let seed = 0; seed < 400; seed++) {
    const source = new Random(seed, "encode");
    const parts = [
      randomText(source, 30),
      "ab!".repeat(source.below(90)),
      "é".repeat(source.below(90)),
    ];
    const text = parts.join(source.below(2) === 0 ? "" : " ");
    assert.deepEqual([...tokenizer.encode(text)], encodeNaively(text), `seed ${seed}: ${text}`);
  }
});

test("decoding what was encoded gives the text again, and its bytes are counted exactly", () => {
  for (let seed = 0; seed < 2000; seed++) {
    const text = randomText(new Random(seed, "identity"), 1 + (seed % 50));
    const ids = tokenizer.encode(text);
    assert.equal(tokenizer.decode(ids), text, `seed ${seed}`);
    const bytes = ids.reduce((sum, id) => sum + tokenizer.countBytes(id), 0);
    assert.equal(bytes, new TextEncoder().encode(text).length, `seed ${seed}`);
  }
});

test("a text encodes the same the second time, when its pieces are remembered", () => {
  const fresh = new Tokenizer(tokenizer.vocabulary);
  for (const text of texts) assert.deepEqual(fresh.encode(text), tokenizer.encode(text));
});

test("a byte order mark is text", () => {
  assert.equal(tokenizer.decode(tokenizer.encode("\ufeffa\ufeff")), "\ufeffa\ufeff");
});

test("a lone surrogate is encoded as U+FFFD", () => {
  assert.deepEqual(tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb"));
  assert.deepEqual(tokenizer.encode("a\udc00"), tokenizer.encode("a\ufffd"));
});

test("tokens that are no valid UTF-8 decode to replacement characters, as TextDecoder's", () => {
  for (let seed = 0; seed < 500; seed++) {
    const source = new Random(seed, "invalid");
    const ids = Array.from({ length: 1 + source.below(12) }, () => 9 + source.below(1191));
    const bytes = ids.flatMap((id) => [...tokenizer.tokenBytes(id)]);
    const expected = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
    assert.equal(tokenizer.decode(ids), expected, `seed ${seed}: ${ids}`);
  }
});

test("a stream gives a character out with its last byte, and the whole text in the end", () => {
  const bytes = Array.from(new TextEncoder().encode("é😀"), (byte) => byte + 9);
  const stream = tokenizer.decoder();
  assert.deepEqual(
    bytes.map((id) => stream.push(id)),
    ["", "é", "", "", "", "😀"],
  );
  assert.equal(stream.push(bytes[0]!), "");
  assert.equal(stream.end(), "\ufffd");
  assert.equal(
    stream.push(bytes[1]!) + stream.end(),
    "\ufffd",
    "after its end a stream starts anew",
  );
});

test("an added token ends the bytes before it and is skipped when asked and special", () => {
  const { bosId, eosId } = tokenizer;
  const think = tokenizer.specialId("thinkBegin")!;
  const half = 0xc3 + 9;
  assert.equal(tokenizer.decode([half, eosId]), `\ufffd${SPECIAL_TOKENS.eos}`);
  assert.equal(tokenizer.decode([bosId, 0x41 + 9, think], { skipSpecialTokens: true }), "A<think>");
});

test("text never yields added tokens unless the caller allows it", () => {
  for (const content of Object.values(SPECIAL_TOKENS)) {
    const plain = tokenizer.encode(`x${content}y`);
    assert.ok(
      plain.every((id) => tokenizer.addedToken(id) === undefined),
      content,
    );
    assert.equal(tokenizer.decode(plain), `x${content}y`);
    const allowed = tokenizer.encode(`x${content}y`, { allowAddedTokens: true });
    assert.equal(allowed.filter((id) => tokenizer.addedToken(id) !== undefined).length, 1, content);
    assert.equal(tokenizer.decode(allowed), `x${content}y`);
  }
});

test("begin and end of sentence are 0 and 1, padding is the end of sentence", () => {
  assert.equal(tokenizer.bosId, 0);
  assert.equal(tokenizer.eosId, 1);
  assert.equal(tokenizer.padId, 1);
  assert.equal(tokenizer.specialId("bos"), 0);
  assert.equal(tokenizer.countBytes(0), 0);
  assert.equal(tokenizer.tokenName(0x20 + 9), "Ġ");
  assert.equal(tokenizer.idOfName("Ċ"), 0x0a + 9);
});

test("an id outside the vocabulary is refused by name", () => {
  for (const id of [-1, 1200, 1.5, Number.NaN]) {
    assert.throws(
      () => tokenizer.decode([id]),
      (error) => error instanceof OperationalError && error.message.includes(`token id ${id} `),
    );
  }
});

test("hostile text takes bounded work for each byte, one megabyte of a letter too", () => {
  for (const [name, unit] of REPEATED) {
    const text = unit.repeat((unit === "a" ? 2 ** 20 : 2 ** 18) / unit.length);
    const before = tokenizer.steps;
    const ids = tokenizer.encode(text);
    const bytes = ids.reduce((sum, id) => sum + tokenizer.countBytes(id), 0);
    assert.equal(bytes, Buffer.byteLength(text), name);
    const pairs = tokenizer.steps.pairs - before.pairs;
    const characters = tokenizer.steps.characters - before.characters;
    // A short piece looks at up to 32 pairs for each merge; a heap at about five entries for each
    // byte.
    assert.ok(pairs <= 40 * bytes, `${name}: ${pairs} pairs`);
    assert.ok(characters <= 8 * text.length, `${name}: ${characters} characters`);
  }
});
