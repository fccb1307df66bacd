/**
 * @file Words that threads share to wake each other, to show that they live, and to say why they
 * stop.
 *
 *   failure   state (0 none, 1 being written, 2 there) and text; the first one stays
 *   member    for each: a bell that others ring, and a counter that shows it lives
 */
import type { Failure } from "./transport.ts";

const FAILURE_STATE = 0;
const TEXT_OFFSET = 64;
/** Longer texts are cut. */
export const FAILURE_BYTES = 2048;
const HEADER_BYTES = TEXT_OFFSET + FAILURE_BYTES;
const MEMBER_BYTES = 128;
const BELL = 0;
const LIFE = 16;

export class Signs {
  readonly buffer: SharedArrayBuffer;
  readonly #numMembers: number;
  readonly #words: Int32Array;

  constructor(numMembers: number, buffer?: SharedArrayBuffer) {
    this.buffer = buffer ?? new SharedArrayBuffer(HEADER_BYTES + numMembers * MEMBER_BYTES);
    this.#numMembers = numMembers;
    this.#words = new Int32Array(this.buffer);
  }

  bell(member: number): number {
    return Atomics.load(this.#words, this.#word(member) + BELL);
  }

  ring(member: number): void {
    const word = this.#word(member) + BELL;
    Atomics.add(this.#words, word, 1);
    Atomics.notify(this.#words, word);
  }

  /** Sleeps until the bell no longer shows `seen`, or for `ms`. */
  awaitBell(member: number, seen: number, ms: number): void {
    Atomics.wait(this.#words, this.#word(member) + BELL, seen, ms);
  }

  life(member: number): number {
    return Atomics.load(this.#words, this.#word(member) + LIFE);
  }

  live(member: number): void {
    Atomics.add(this.#words, this.#word(member) + LIFE, 1);
  }

  /** The first failure stays; every member is woken to see it. */
  fail(failure: Failure): void {
    if (Atomics.compareExchange(this.#words, FAILURE_STATE, 0, 1) !== 0) return;
    const text = new TextEncoder().encode(`${failure.code} ${failure.message}`);
    const room = new Uint8Array(this.buffer, TEXT_OFFSET, FAILURE_BYTES - 1);
    room.set(text.subarray(0, room.length));
    Atomics.store(this.#words, FAILURE_STATE, 2);
    for (let member = 0; member < this.#numMembers; member++) this.ring(member);
  }

  failure(): Failure | null {
    if (Atomics.load(this.#words, FAILURE_STATE) !== 2) return null;
    const bytes = new Uint8Array(this.buffer, TEXT_OFFSET, FAILURE_BYTES).slice();
    const text = new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
    const space = text.indexOf(" ");
    return { code: text.slice(0, space) as Failure["code"], message: text.slice(space + 1) };
  }

  #word(member: number): number {
    return (HEADER_BYTES + member * MEMBER_BYTES) / 4;
  }
}
