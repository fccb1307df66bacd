/**
 * @file Seeded random numbers: xoshiro128** with its state exposed, so that a checkpoint can hold
 * it.
 *
 * The generator is the public-domain algorithm of Blackman and Vigna; seeding runs SplitMix32 over
 * the seed and a label, so that `fork("dropout")` and `fork("init")` are independent streams of one
 * seed.
 */
import { assert } from "./errors.ts";

/** The four 32-bit words of a generator; plain data, safe to write to JSON. */
export type RandomState = readonly [number, number, number, number];

function mix32(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x21f0aaad);
  h = Math.imul(h ^ (h >>> 15), 0x735a2d97);
  return (h ^ (h >>> 15)) >>> 0;
}

/**
 * A deterministic stream of numbers; the same seed and label give the same stream on every machine.
 */
export class Random {
  #a = 0;
  #b = 0;
  #c = 0;
  #d = 0;

  constructor(seed: number, label = "") {
    assert(Number.isSafeInteger(seed) && seed >= 0, `seed (${seed}) must be a whole number >= 0`);
    let word = mix32((seed >>> 0) ^ mix32(Math.floor(seed / 2 ** 32)));
    for (const character of label) word = mix32((word ^ character.codePointAt(0)!) + 0x9e3779b9);
    const words = [1, 2, 3, 4].map((index) => mix32(word + Math.imul(index, 0x9e3779b9)));
    this.state = [words[0]!, words[1]!, words[2]!, words[3]! | 1];
  }

  get state(): RandomState {
    return [this.#a >>> 0, this.#b >>> 0, this.#c >>> 0, this.#d >>> 0];
  }

  set state(words: RandomState) {
    assert(
      words.some((word) => word !== 0),
      "a generator's state may not be all zero",
    );
    [this.#a, this.#b, this.#c, this.#d] = words;
  }

  /** Uniform in [0, 2^32). */
  uint32(): number {
    const times5 = Math.imul(this.#b, 5);
    const result = Math.imul((times5 << 7) | (times5 >>> 25), 9);
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result >>> 0;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    return ((this.uint32() >>> 5) * 2 ** 26 + (this.uint32() >>> 6)) / 2 ** 53;
  }

  /** A whole number in [0, bound), without modulo bias. */
  below(bound: number): number {
    assert(
      Number.isInteger(bound) && bound > 0 && bound <= 2 ** 32,
      `bound (${bound}) must be a whole number in 1..2^32`,
    );
    const limit = 2 ** 32 - (2 ** 32 % bound);
    for (;;) {
      const word = this.uint32();
      if (word < limit) return word % bound;
    }
  }

  /**
   * Standard normal, by the polar method; the second value of a pair is dropped so that state stays
   * four words.
   */
  normal(): number {
    for (;;) {
      const u = this.uniform() * 2 - 1;
      const v = this.uniform() * 2 - 1;
      const square = u * u + v * v;
      if (square > 0 && square < 1) return u * Math.sqrt((-2 * Math.log(square)) / square);
    }
  }

  /** Fisher–Yates, in place. */
  shuffle<T>(items: T[] | Int32Array | Uint32Array): void {
    const array = items as T[];
    for (let last = array.length - 1; last > 0; last--) {
      const other = this.below(last + 1);
      const held = array[last]!;
      array[last] = array[other]!;
      array[other] = held;
    }
  }
}
