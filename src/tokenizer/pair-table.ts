/**
 * @file A hash table from a pair of token ids to a small whole number, in typed arrays.
 *
 * Open addressing with linear probing, at most half full; no deletion. A `Map` keyed by a number
 * beyond 31 bits allocates for every key; this table is what makes learning and merging fast.
 */
import { assert } from "../base/errors.ts";

const EMPTY = -1;

function hashPair(left: number, right: number): number {
  const h = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return (h ^ (h >>> 15)) >>> 0;
}

/** Pairs of ids >= 0 to numbers >= 0. */
export class PairTable {
  #numPairs = 0;
  #mask: number;
  /** Interleaved: left, right, value; left is EMPTY in a free slot. */
  #slots: Int32Array;

  constructor(numPairsExpected: number) {
    const numSlots = 2 ** Math.ceil(Math.log2(Math.max(16, numPairsExpected * 2)));
    this.#mask = numSlots - 1;
    this.#slots = new Int32Array(numSlots * 3).fill(EMPTY);
  }

  get numPairs(): number {
    return this.#numPairs;
  }

  /** The pair's number, or -1. */
  get(left: number, right: number): number {
    const slot = this.#find(left, right);
    return this.#slots[slot] === EMPTY ? -1 : this.#slots[slot + 2]!;
  }

  /** Sets the pair's number; the pair must be new. */
  add(left: number, right: number, value: number): void {
    if ((this.#numPairs + 1) * 2 > this.#mask + 1) this.#grow();
    const slot = this.#find(left, right);
    assert(this.#slots[slot] === EMPTY, `the pair (${left}, ${right}) is in the table already`);
    this.#slots[slot] = left;
    this.#slots[slot + 1] = right;
    this.#slots[slot + 2] = value;
    this.#numPairs++;
  }

  #find(left: number, right: number): number {
    const slots = this.#slots;
    let index = hashPair(left, right) & this.#mask;
    for (;;) {
      const slot = index * 3;
      const held = slots[slot];
      if (held === EMPTY || (held === left && slots[slot + 1] === right)) return slot;
      index = (index + 1) & this.#mask;
    }
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = new Int32Array(old.length * 2).fill(EMPTY);
    this.#mask = this.#mask * 2 + 1;
    for (let from = 0; from < old.length; from += 3) {
      if (old[from] === EMPTY) continue;
      const to = this.#find(old[from]!, old[from + 1]!);
      this.#slots.set(old.subarray(from, from + 3), to);
    }
  }
}
