/**
 * @file The words that ranks on threads share.
 *
 *   failure   state (0 none, 1 being written, 2 there) and text
 *   rank      for each: a bell that others ring, and a counter that shows it lives
 *   ring      for each ordered pair of ranks: slots that describe messages under way
 *
 * A slot is free, then published by the sender, then taken by the receiver, which has read its
 * words; after the bytes are copied it is free again. The bytes themselves never pass here: the
 * receiver copies them from the sender's memory into its own.
 */
import type { Failure } from "../transport.ts";

const FAILURE_STATE = 0;
const FAILURE_BYTES = 2048;
const HEADER_BYTES = 64 + FAILURE_BYTES;
const RANK_BYTES = 128;
const BELL = 0;
const LIFE = 16;

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

export class Control {
  readonly buffer: SharedArrayBuffer;
  readonly #numRanks: number;
  readonly #words: Int32Array;
  readonly #unsigned: Uint32Array;

  constructor(numRanks: number, buffer?: SharedArrayBuffer) {
    const bytes = HEADER_BYTES + numRanks * RANK_BYTES + numRanks * numRanks * RING_BYTES;
    this.buffer = buffer ?? new SharedArrayBuffer(bytes);
    this.#numRanks = numRanks;
    this.#words = new Int32Array(this.buffer);
    this.#unsigned = new Uint32Array(this.buffer);
  }

  bell(rank: number): number {
    return Atomics.load(this.#words, this.#rankWord(rank) + BELL);
  }

  ring(rank: number): void {
    const word = this.#rankWord(rank) + BELL;
    Atomics.add(this.#words, word, 1);
    Atomics.notify(this.#words, word);
  }

  /** Sleeps until the bell no longer shows `seen`, or for `ms`. */
  awaitBell(rank: number, seen: number, ms: number): void {
    Atomics.wait(this.#words, this.#rankWord(rank) + BELL, seen, ms);
  }

  life(rank: number): number {
    return Atomics.load(this.#words, this.#rankWord(rank) + LIFE);
  }

  live(rank: number): void {
    Atomics.add(this.#words, this.#rankWord(rank) + LIFE, 1);
  }

  slotState(from: number, to: number, slot: number): number {
    return Atomics.load(this.#words, this.#slotWord(from, to, slot));
  }

  setSlotState(from: number, to: number, slot: number, state: number): void {
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

  /** The first failure stays; every rank is woken to see it. */
  fail(failure: Failure): void {
    if (Atomics.compareExchange(this.#words, FAILURE_STATE, 0, 1) !== 0) return;
    const text = new TextEncoder().encode(`${failure.code} ${failure.message}`);
    const room = new Uint8Array(this.buffer, 64, FAILURE_BYTES - 1);
    room.set(text.subarray(0, room.length));
    Atomics.store(this.#words, FAILURE_STATE, 2);
    for (let rank = 0; rank < this.#numRanks; rank++) this.ring(rank);
  }

  failure(): Failure | null {
    if (Atomics.load(this.#words, FAILURE_STATE) !== 2) return null;
    const bytes = new Uint8Array(this.buffer, 64, FAILURE_BYTES).slice();
    const text = new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
    const space = text.indexOf(" ");
    return { code: text.slice(0, space) as Failure["code"], message: text.slice(space + 1) };
  }

  #rankWord(rank: number): number {
    return (HEADER_BYTES + rank * RANK_BYTES) / 4;
  }

  #slotWord(from: number, to: number, slot: number): number {
    const rings = HEADER_BYTES + this.#numRanks * RANK_BYTES;
    const ring = rings + (from * this.#numRanks + to) * RING_BYTES;
    return ring / 4 + slot * SLOT_WORDS;
  }
}
