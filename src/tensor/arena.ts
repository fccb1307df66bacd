/**
 * @file Arenas: memory handed out in order and given back by marks, never piece by piece.
 *
 *     using mark = arena.mark();  // all that is allocated from here on is released with `mark`
 *     const x_TD = arena.allocate("f32", [tokens, hidden]);
 *
 * An arena grows by whole chunks of device memory, which it keeps for the next use: a training step
 * allocates the same tensors at the same places every time, and after the first step no memory is
 * asked of the device.
 */
import { assert } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import type { CpuMemory } from "../device/cpu/memory.ts";
import { DTYPE_BYTES, type DType } from "./dtype.ts";
import { makeTensor, type Tensor } from "./tensor.ts";

/** Tensors start on cache lines, so that no two threads write the same one by accident. */
const ALIGNMENT = 64;
const CHUNK_BYTES = 16 * 2 ** 20;
/**
 * Chunks begin at different places of a page: streams that keep the same distance modulo 4096 share
 * sets of the first-level cache, and AdamW over four such streams was measured at a quarter to two
 * thirds of its speed.
 */
const PAGE_BYTES = 4096;
const STAGGER_BYTES = 5 * ALIGNMENT;

interface Chunk {
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** Releases, in reverse order of making, what was allocated since it was made. */
export interface ArenaMark extends Disposable {}

export class Arena {
  readonly name: string;
  readonly #memory: CpuMemory;
  readonly #chunks: Chunk[] = [];
  #chunkIndex = 0;
  #used = 0;
  #openMarks = 0;
  #liveBytes = 0;
  #peakBytes = 0;

  constructor(memory: CpuMemory, name: string) {
    this.#memory = memory;
    this.name = name;
  }

  /** Uninitialised memory for a tensor; released with the mark it was allocated under. */
  allocate<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const elements = shape.reduce((product, dimension) => product * dimension, 1);
    const bytes = roundUp(Math.max(elements * DTYPE_BYTES[dtype], 1), ALIGNMENT);
    return makeTensor(this.#memory, dtype, shape, this.#take(bytes));
  }

  /** Like `allocate`, filled with zeros. */
  allocateZeros<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const tensor = this.allocate(dtype, shape);
    const bytes = tensor.rows * tensor.columns * DTYPE_BYTES[dtype];
    this.#memory.u8.fill(0, tensor.byteOffset, tensor.byteOffset + bytes);
    return tensor;
  }

  mark(): ArenaMark {
    const chunkIndex = this.#chunkIndex;
    const used = this.#used;
    const liveBytes = this.#liveBytes;
    const depth = ++this.#openMarks;
    return {
      [Symbol.dispose]: (): void => {
        assert(
          this.#openMarks === depth,
          `marks of arena "${this.name}" must be released in reverse order`,
        );
        this.#openMarks = depth - 1;
        this.#chunkIndex = chunkIndex;
        this.#used = used;
        this.#liveBytes = liveBytes;
      },
    };
  }

  /** Bytes of live tensors, padding included. */
  get liveBytes(): number {
    return this.#liveBytes;
  }

  /** The most `liveBytes` has been. */
  get peakBytes(): number {
    return this.#peakBytes;
  }

  #take(bytes: number): number {
    let chunk = this.#chunks[this.#chunkIndex];
    while (chunk !== undefined && this.#used + bytes > chunk.byteLength) {
      this.#chunkIndex++;
      this.#used = 0;
      chunk = this.#chunks[this.#chunkIndex];
    }
    if (chunk === undefined) {
      const byteLength = Math.max(bytes, CHUNK_BYTES);
      const page = this.#memory.reserve(byteLength + PAGE_BYTES);
      const stagger = (this.#memory.numReservations * STAGGER_BYTES) % PAGE_BYTES;
      chunk = { byteOffset: page + stagger, byteLength };
      this.#chunks.push(chunk);
    }
    const byteOffset = chunk.byteOffset + this.#used;
    this.#used += bytes;
    this.#liveBytes += bytes;
    this.#peakBytes = Math.max(this.#peakBytes, this.#liveBytes);
    return byteOffset;
  }
}
