/**
 * @file The rings in which ranks on threads describe messages to each other.
 *
 * Each ordered pair of ranks has one. A slot is free, then published by the sender, then taken by
 * the receiver, which has read its words; after the bytes are copied it is free again. The bytes
 * themselves never pass here: the receiver copies them from the sender's memory into its own.
 */

export const RING_SLOTS = 64;
const SLOT_WORDS = 4;
const RING_BYTES = RING_SLOTS * SLOT_WORDS * 4;

export const SLOT_FREE = 0;
export const SLOT_PUBLISHED = 1;
export const SLOT_TAKEN = 2;

/** Words of a slot after its state. */
const TAG = 1;
const OFFSET = 2;
const LENGTH = 3;

/** What a slot says about a message. */
export interface Description {
  readonly tag: number;
  readonly byteOffset: number;
  readonly byteLength: number;
}

export class Rings {
  readonly buffer: SharedArrayBuffer;
  readonly #numRanks: number;
  readonly #words: Int32Array;
  readonly #unsigned: Uint32Array;

  constructor(numRanks: number, buffer?: SharedArrayBuffer) {
    this.buffer = buffer ?? new SharedArrayBuffer(numRanks * numRanks * RING_BYTES);
    this.#numRanks = numRanks;
    this.#words = new Int32Array(this.buffer);
    this.#unsigned = new Uint32Array(this.buffer);
  }

  state(from: number, to: number, slot: number): number {
    return Atomics.load(this.#words, this.#slotWord(from, to, slot));
  }

  setState(from: number, to: number, slot: number, state: number): void {
    Atomics.store(this.#words, this.#slotWord(from, to, slot), state);
  }

  publish(from: number, to: number, slot: number, description: Description): void {
    const word = this.#slotWord(from, to, slot);
    this.#words[word + TAG] = description.tag;
    this.#unsigned[word + OFFSET] = description.byteOffset;
    this.#unsigned[word + LENGTH] = description.byteLength;
    Atomics.store(this.#words, word, SLOT_PUBLISHED);
  }

  describe(from: number, to: number, slot: number): Description {
    const word = this.#slotWord(from, to, slot);
    return {
      tag: this.#words[word + TAG]!,
      byteOffset: this.#unsigned[word + OFFSET]!,
      byteLength: this.#unsigned[word + LENGTH]!,
    };
  }

  #slotWord(from: number, to: number, slot: number): number {
    return ((from * this.#numRanks + to) * RING_SLOTS + slot) * SLOT_WORDS;
  }
}
