/**
 * @file Applying merges to one piece: the pair of lowest rank first, the leftmost of equals, until
 * none is left.
 *
 * Short pieces look at all their pairs for each merge; long ones keep the pairs in a heap over a
 * linked list, so a piece of n bytes takes O(n log n) (one megabyte of one character is one piece).
 * Both orders are the same as the Hugging Face tokenizers'. `steps` counts pairs looked at and heap
 * entries handled, for the linear-time tests.
 */
import type { PairTable } from "./pair-table.ts";

/** Ranks of pairs, and the token each merge makes. */
export interface MergeRules {
  /** (left, right) to rank; a lower rank goes first. */
  readonly rankOf: PairTable;
  /** The token that the merge of this rank makes. */
  readonly tokenOfRank: Int32Array;
}

const SCAN_LENGTH_MAX = 32;
const NONE = -1;
/** Heap keys are rank × 2³² + position: exact in a double while ranks stay below 2²¹. */
const POSITION_RANGE = 2 ** 32;

/** Merges pieces in its own scratch memory; one per encoder. */
export class PieceMerger {
  /** Pairs looked at and heap entries handled since construction. */
  steps = 0;
  readonly #rules: MergeRules;
  /** The symbols of the piece; written by the caller through `symbols`, merged in place. */
  #symbols = new Int32Array(256);
  #rank = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #heap = new Float64Array(512);
  #heapLength = 0;

  constructor(rules: MergeRules) {
    this.#rules = rules;
  }

  /** Scratch for at least `length` symbols, to be filled with the ids of a piece's bytes. */
  symbols(length: number): Int32Array {
    if (length > this.#symbols.length) {
      const capacity = length * 2;
      this.#symbols = new Int32Array(capacity);
      this.#rank = new Int32Array(capacity);
      this.#next = new Int32Array(capacity);
      this.#previous = new Int32Array(capacity);
      // Two entries a symbol: each of fewer than `capacity` merges takes one entry away and puts at
      // most two in.
      this.#heap = new Float64Array(capacity * 2);
    }
    return this.#symbols;
  }

  /**
   * Merges the first `length` symbols in place; returns how many are left, at the front of
   * `symbols`.
   */
  merge(length: number): number {
    if (length <= 1) return length;
    return length <= SCAN_LENGTH_MAX ? this.#mergeShort(length) : this.#mergeLong(length);
  }

  #mergeShort(length: number): number {
    const symbols = this.#symbols;
    const rank = this.#rank;
    const { rankOf, tokenOfRank } = this.#rules;
    for (let i = 0; i + 1 < length; i++) rank[i] = rankOf.get(symbols[i]!, symbols[i + 1]!);
    let left = length;
    for (;;) {
      let best = NONE;
      for (let i = 0; i + 1 < left; i++) {
        if (rank[i] !== NONE && (best === NONE || rank[i]! < rank[best]!)) best = i;
      }
      this.steps += left;
      if (best === NONE) return left;
      symbols[best] = tokenOfRank[rank[best]!]!;
      symbols.copyWithin(best + 1, best + 2, left);
      rank.copyWithin(best + 1, best + 2, left);
      left--;
      if (best > 0) rank[best - 1] = rankOf.get(symbols[best - 1]!, symbols[best]!);
      if (best + 1 < left) rank[best] = rankOf.get(symbols[best]!, symbols[best + 1]!);
    }
  }

  #mergeLong(length: number): number {
    const symbols = this.#symbols;
    const rank = this.#rank;
    const next = this.#next;
    const previous = this.#previous;
    this.#heapLength = 0;
    for (let i = 0; i < length; i++) {
      next[i] = i + 1 < length ? i + 1 : NONE;
      previous[i] = i - 1;
    }
    for (let i = 0; i < length; i++) this.#rankPair(i);
    while (this.#heapLength > 0) {
      const key = this.#pop();
      const at = key % POSITION_RANGE;
      // The pair at this position has changed since the entry was made, or is gone.
      if (rank[at] !== Math.floor(key / POSITION_RANGE)) continue;
      const gone = next[at]!;
      const after = next[gone]!;
      symbols[at] = this.#rules.tokenOfRank[rank[at]!]!;
      rank[gone] = NONE;
      next[at] = after;
      if (after !== NONE) previous[after] = at;
      this.#rankPair(at);
      if (previous[at] !== NONE) this.#rankPair(previous[at]!);
    }
    let left = 0;
    for (let at = 0; at !== NONE; at = next[at]!) symbols[left++] = symbols[at]!;
    return left;
  }

  #rankPair(at: number): void {
    const right = this.#next[at]!;
    const rank =
      right === NONE ? NONE : this.#rules.rankOf.get(this.#symbols[at]!, this.#symbols[right]!);
    this.#rank[at] = rank;
    this.steps++;
    if (rank !== NONE) this.#push(rank * POSITION_RANGE + at);
  }

  #push(key: number): void {
    const heap = this.#heap;
    let child = this.#heapLength++;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (heap[parent]! <= key) break;
      heap[child] = heap[parent]!;
      child = parent;
    }
    heap[child] = key;
  }

  #pop(): number {
    const heap = this.#heap;
    const top = heap[0]!;
    const last = heap[--this.#heapLength]!;
    const length = this.#heapLength;
    let hole = 0;
    for (;;) {
      let child = hole * 2 + 1;
      if (child >= length) break;
      if (child + 1 < length && heap[child + 1]! < heap[child]!) child++;
      if (heap[child]! >= last) break;
      heap[hole] = heap[child]!;
      hole = child;
    }
    heap[hole] = last;
    this.steps++;
    return top;
  }
}
