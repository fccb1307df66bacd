/**
 * @file Arenas: memory handed out in order and given back by marks, never piece by piece.
 *
 *     using mark = arena.mark();  // all that is allocated from here on is released with `mark`
 *     const x_TD = arena.allocate("f32", [tokens, hidden]);
 *
 * An arena grows by whole chunks of device memory, which it keeps for the next use: a training step
 * allocates the same tensors at the same places every time, and after the first step no memory is
 * asked of the device.
 *
 * What an arena has used of its chunks stands in huge pages. A page that was begun in small ones
 * stays in them, so a large arena asks for the next one when it comes there. A small arena asks
 * for what its tensors fill alone: it would waste more than it holds.
 */
import { assert } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import { type CpuMemory, HUGE_PAGE_BYTES } from "../device/cpu/memory.ts";
import { DTYPE_BYTES, type DType } from "./dtype.ts";
import { makeTensor, type Tensor } from "./tensor.ts";

/** Tensors start on cache lines, so that no two threads write the same one by accident. */
const ALIGNMENT = 64;
const CHUNK_BYTES = 16 * 2 ** 20;
/**
 * Chunks, and tensors that follow a large one, begin at different places of a page: streams that
 * keep the same distance modulo 4096 share sets of the first-level cache, and AdamW over four such
 * streams was measured at a quarter to two thirds of its speed.
 */
const PAGE_BYTES = 4096;
const STAGGER_BYTES = 5 * ALIGNMENT;
const LARGE_TENSOR_BYTES = 64 * 1024;
/** From here on an arena may waste the rest of its last huge page. */
const LARGE_ARENA_BYTES = 2 * HUGE_PAGE_BYTES;

interface Chunk {
  /** What the memory reserved; it begins a huge page. */
  readonly place: number;
  /** Of the first tensor. */
  readonly byteOffset: number;
  end: number;
  /** End of the last huge page that was ever in use. */
  pagesEnd: number;
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
    const stagger = bytes < LARGE_TENSOR_BYTES ? 0 : STAGGER_BYTES;
    return makeTensor(this.#memory, dtype, shape, this.#take(bytes + stagger));
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
    while (this.#chunkIndex < this.#chunks.length - 1 && !this.#hasRoom(chunk, bytes)) {
      chunk = this.#chunks[++this.#chunkIndex];
      this.#used = 0;
    }
    if (chunk === undefined || !this.#hasRoom(chunk, bytes)) chunk = this.#grow(chunk, bytes);
    const byteOffset = chunk.byteOffset + this.#used;
    this.#used += bytes;
    this.#liveBytes += bytes;
    this.#peakBytes = Math.max(this.#peakBytes, this.#liveBytes);
    this.#useHugePages(chunk);
    return byteOffset;
  }

  #hasRoom(chunk: Chunk | undefined, bytes: number): boolean {
    return chunk !== undefined && chunk.byteOffset + this.#used + bytes <= chunk.end;
  }

  /** Room for so many bytes: a longer last chunk if what lies behind it is free, or a new one. */
  #grow(last: Chunk | undefined, bytes: number): Chunk {
    const isNext = last?.end === this.#memory.reservedBytes;
    const missing = isNext ? last.byteOffset + this.#used + bytes - last.end : bytes + PAGE_BYTES;
    const reserved = roundUp(Math.max(missing, CHUNK_BYTES), HUGE_PAGE_BYTES);
    const place = this.#memory.reserve(reserved);
    if (isNext) {
      last.end = place + reserved;
      return last;
    }
    const stagger = (this.#memory.numReservations * STAGGER_BYTES) % PAGE_BYTES;
    const chunk = { place, byteOffset: place + stagger, end: place + reserved, pagesEnd: place };
    this.#chunkIndex = this.#chunks.push(chunk) - 1;
    this.#used = 0;
    return chunk;
  }

  /** Says how far the chunk is used whenever that is on a page further. */
  #useHugePages(chunk: Chunk): void {
    const end = chunk.byteOffset + this.#used;
    const pagesEnd = this.#memory.endOfHugePage(end);
    if (pagesEnd <= chunk.pagesEnd) return;
    chunk.pagesEnd = pagesEnd;
    const isLarge = this.#liveBytes >= LARGE_ARENA_BYTES;
    this.#memory.useHugePages(chunk.place, isLarge ? pagesEnd : end);
  }
}
