/**
 * @file Memory that collectives borrow for a moment: spans of equal length, used again.
 *
 * The device's memory is never returned to it, so a span is kept here when nobody uses it.
 */
import { assert } from "../../base/errors.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";

export class Scratch {
  readonly #memory: CpuMemory;
  readonly #free = new Map<number, number[]>();

  constructor(memory: CpuMemory) {
    this.#memory = memory;
  }

  /** The byte offset of a span of exactly this length, with anything in it. */
  take(byteLength: number): number {
    return this.#free.get(byteLength)?.pop() ?? this.#memory.reserve(byteLength);
  }

  giveBack(byteOffset: number, byteLength: number): void {
    const spans = this.#free.get(byteLength) ?? [];
    assert(!spans.includes(byteOffset), "a span is given back once");
    this.#free.set(byteLength, [...spans, byteOffset]);
  }
}
