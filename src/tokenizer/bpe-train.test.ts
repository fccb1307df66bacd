/** @file Learning merges: a worked example, a naive oracle, independence of order, bounds. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { randomText } from "../../test/support/random-text.ts";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { type BpeTrainProgress, trainBpe } from "./bpe-train.ts";
import { PieceScanner } from "./pre-tokenizer.ts";

const NUM_ADDED = 9;

function learn(texts: readonly string[], numMerges: number, minFrequency = 2): [number, number][] {
  const vocabSize = NUM_ADDED + 256 + numMerges;
  const { left, right } = trainBpe(texts, { vocabSize, numAddedTokens: NUM_ADDED, minFrequency });
  return Array.from(left, (id, rank) => [id, right[rank]!]);
}

/** The definition: count all pairs anew, take the best, replace it everywhere. */
function learnNaively(texts: readonly string[], numMerges: number): [number, number][] {
  const words: number[][] = [];
  const scanner = new PieceScanner();
  for (const text of texts) {
    scanner.reset(text);
    while (scanner.next()) {
      const bytes = new TextEncoder().encode(text.slice(scanner.start, scanner.end));
      for (let i = 0; i < bytes.length; i += 128) {
        words.push(Array.from(bytes.subarray(i, i + 128), (byte) => byte + NUM_ADDED));
      }
    }
  }
  const merges: [number, number][] = [];
  while (merges.length < numMerges) {
    const best = bestPair(words);
    if (best === undefined) break;
    const token = NUM_ADDED + 256 + merges.length;
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === best[0] && word[i + 1] === best[1]) word.splice(i, 2, token);
      }
    }
    merges.push(best);
  }
  return merges;
}

function bestPair(words: readonly number[][]): [number, number] | undefined {
  const counts = new Map<number, number>();
  for (const word of words) {
    for (let i = 0; i + 1 < word.length; i++) {
      const key = word[i]! * 2 ** 20 + word[i + 1]!;
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
  }
  let best: number | undefined;
  for (const [key, count] of counts) {
    const bestCount = best === undefined ? 1 : counts.get(best)!;
    if (count > bestCount || (count === bestCount && best !== undefined && key < best)) best = key;
  }
  return best === undefined ? undefined : [Math.floor(best / 2 ** 20), best % 2 ** 20];
}

test("the most frequent pair is merged first, the lower pair of equals", () => {
  const id = (character: string): number => character.charCodeAt(0) + NUM_ADDED;
  assert.deepEqual(learn(["abab abab cd cd"], 3), [
    [id("a"), id("b")],
    [id(" "), id("c")],
    [NUM_ADDED + 256, NUM_ADDED + 256],
  ]);
});

test("merges equal those of the naive definition on random texts", () => {
  for (let seed = 0; seed < 40; seed++) {
    const random = new Random(seed, "learn");
    const texts = Array.from({ length: 3 }, () => randomText(random, 60));
    assert.deepEqual(learn(texts, 40), learnNaively(texts, 40), `seed ${seed}`);
  }
  const runs = ["aaaaaaa aaaa aaaaa", "a".repeat(300), "ababababab abab"];
  assert.deepEqual(learn(runs, 20), learnNaively(runs, 20));
});

test("the order of the texts does not matter", () => {
  const random = new Random(5, "order");
  const texts = Array.from({ length: 30 }, () => randomText(random, 40));
  assert.deepEqual(learn(texts, 200), learn(texts.toReversed(), 200));
});

test("a pair below minFrequency is not merged, and learning ends early", () => {
  assert.deepEqual(learn(["xy xy", "pq"], 50, 3), []);
  assert.equal(learn(["xy xy", "pq"], 50, 2).length, 1);
});

test("no more than bytesMax bytes are learned from, cut between characters", () => {
  const read = (texts: readonly string[], bytesMax: number): number =>
    trainBpe(texts, { vocabSize: 300, numAddedTokens: NUM_ADDED, bytesMax }).bytesRead;
  assert.equal(read(["éééé", "abc"], 5), 4);
  assert.equal(read(["😀😀"], 7), 4);
  assert.equal(read(["abc", "def", "ghi"], 6), 6);
  assert.equal(read(["abc", "def"], 100), 6);
});

test("texts are pulled only until the cap", () => {
  let numPulled = 0;
  function* endless(): Generator<string> {
    for (;;) {
      numPulled++;
      yield "some words ";
    }
  }
  trainBpe(endless(), { vocabSize: 300, numAddedTokens: NUM_ADDED, bytesMax: 110 });
  assert.ok(numPulled <= 11, `${numPulled} texts pulled`);
});

test("progress ends at the number of tokens made", () => {
  const seen: BpeTrainProgress[] = [];
  const texts = [randomText(new Random(1), 4000)];
  const onProgress = (progress: BpeTrainProgress): number => seen.push(progress);
  const { left } = trainBpe(texts, { vocabSize: 700, numAddedTokens: NUM_ADDED, onProgress });
  assert.equal(seen.at(-1)?.stage, "merge");
  assert.equal(seen.at(-1)?.numTokens, NUM_ADDED + 256 + left.length);
});

test("a vocabulary too small for the bytes is refused with the least that works", () => {
  assert.throws(
    () => trainBpe([], { vocabSize: 264, numAddedTokens: NUM_ADDED }),
    (error) => error instanceof OperationalError && /use 265 or more/.test(error.message),
  );
});
