/**
 * @file Counter-based random words: keyed, even, and unrelated from word to word and key to key.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { counterKeys, counterWord } from "./counter-random.ts";

const COUNT = 2 ** 16;

test("a word follows from seed, stream and number alone, and each of them changes it", () => {
  const word = (seed: number, stream: number, counter: number): number =>
    counterWord(counterKeys(seed, stream), counter);
  assert.equal(word(1, 2, 3), word(1, 2, 3));
  assert.notEqual(word(1, 2, 3), word(2, 2, 3));
  assert.notEqual(word(1, 2, 3), word(1, 3, 3));
  assert.notEqual(word(1, 2, 3), word(1, 2, 4));
});

test("every bit is set in half of the words, whatever the next word's or key's is", () => {
  const keys = counterKeys(7, 1);
  const nextKeys = counterKeys(7, 2);
  // Six standard deviations of a fair coin.
  const allowed = 6 * Math.sqrt(COUNT) * 0.5;
  for (let bit = 0; bit < 32; bit++) {
    let [ones, changesByCounter, changesByKey] = [0, 0, 0];
    for (let counter = 0; counter < COUNT; counter++) {
      const value = (counterWord(keys, counter) >>> bit) & 1;
      ones += value;
      changesByCounter += value ^ ((counterWord(keys, counter + 1) >>> bit) & 1);
      changesByKey += value ^ ((counterWord(nextKeys, counter) >>> bit) & 1);
    }
    for (const count of [ones, changesByCounter, changesByKey]) {
      assert.ok(Math.abs(count - COUNT / 2) < allowed, `bit ${bit}: ${count} of ${COUNT}`);
    }
  }
});
