/** @file Validation windows: every byte once, targets in order, windows that never change. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { randomText } from "../../../test/support/random-text.ts";
import { Random } from "../../base/random.ts";
import { trainBpe } from "../../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { TokenSource } from "./token-source.ts";
import { validationBatches } from "./validation-batches.ts";

const random = new Random(21, "validation");
const texts = [
  "",
  "a",
  ...Array.from({ length: 40 }, (_, i) => randomText(random, i * 2)),
  "",
  "z",
];
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(texts, { vocabSize: 600, numAddedTokens: 9 })),
);

function tokensOf(documents: readonly string[]): TokenSource {
  const ids = documents.map((text) => tokenizer.encode(text));
  return {
    numDocuments: ids.length,
    documentTokens: (document) => ids[document]!.length,
    read: (document, start, count) => ids[document]!.slice(start, start + count),
  };
}

test("the targets are the documents, every byte once", () => {
  for (const [seqLength, lookahead, numSequences] of [
    [1, 1, 1],
    [2, 3, 5],
    [17, 1, 4],
    [64, 2, 3],
    [5000, 1, 2],
    [100_000, 2, 2],
  ] as const) {
    const targets: number[] = [];
    let bytes = 0;
    const options = { seqLength, lookahead, numSequences };
    for (const batch of validationBatches(tokensOf(texts), tokenizer, options)) {
      assert.equal(batch.width, seqLength + lookahead);
      assert.equal(batch.tokens.length, batch.numSequences * batch.width);
      bytes += batch.bytes;
      for (let s = 0; s < batch.numSequences; s++) {
        for (let j = 0; j < seqLength; j++) {
          const target = batch.tokens[s * batch.width + j + 1]!;
          const count = batch.targetBytes[s * seqLength + j]!;
          assert.equal(count, tokenizer.countBytes(target));
          if (count > 0) targets.push(target);
        }
      }
    }
    assert.equal(bytes, Buffer.byteLength(texts.join("")), `windows of ${seqLength}`);
    assert.equal(tokenizer.decode(targets), texts.join(""), `windows of ${seqLength}`);
  }
});

test("windows are the stream of framed documents, cut where the last one ended", () => {
  const { bosId, eosId } = tokenizer;
  const stream = texts.flatMap((text) => [bosId, ...tokenizer.encode(text), eosId]);
  const options = { seqLength: 13, lookahead: 2, numSequences: 3 };
  let window = 0;
  for (const { tokens, numSequences } of validationBatches(tokensOf(texts), tokenizer, options)) {
    for (let s = 0; s < numSequences; s++, window++) {
      const expected = Array.from({ length: 15 }, (_, j) => stream[window * 13 + j] ?? eosId);
      assert.deepEqual([...tokens.subarray(s * 15, (s + 1) * 15)], expected, `window ${window}`);
    }
  }
  assert.equal(window, Math.ceil((stream.length - 1) / 13));
});

test("fewer windows are spread over the stream and are among all of them", () => {
  const windowsOf = (windowsMax: number): string[] => {
    const options = { seqLength: 16, lookahead: 1, numSequences: 4, windowsMax };
    const out: string[] = [];
    for (const batch of validationBatches(tokensOf(texts), tokenizer, options)) {
      for (let s = 0; s < batch.numSequences; s++) {
        out.push(batch.tokens.subarray(s * 17, (s + 1) * 17).join(" "));
      }
    }
    return out;
  };
  const all = windowsOf(Infinity);
  const some = windowsOf(10);
  assert.equal(some.length, 10);
  const places = some.map((window) => all.indexOf(window));
  assert.ok(places.every((place, i) => place >= 0 && (i === 0 || place > places[i - 1]!)));
  assert.ok(places.at(-1)! > all.length * 0.8);
});

test("nothing held out gives no batches", () => {
  const options = { seqLength: 16, lookahead: 1, numSequences: 4 };
  assert.deepEqual([...validationBatches(tokensOf([]), tokenizer, options)], []);
});
