/**
 * @file The latent KV cache of one sequence: its positions and the blocks that hold them.
 *
 * Positions [64i, 64i + 64) are in the i-th block. Blocks may be shared with other sequences and
 * with the prefix cache; before positions are written into a shared block it is copied. A pass over
 * new tokens `reserve`s room for them, writes their rows layer by layer and then `advance`s; until
 * then the rows of no layer count.
 */
import { assert } from "../base/errors.ts";
import { floorDiv, isIntegerIn } from "../base/integers.ts";
import { LATENT_BLOCK_TOKENS } from "../kernels/latent-attention/contract.ts";
import { blocksFor, type LatentBlocks } from "./latent-blocks.ts";

export class LatentCache {
  readonly pool: LatentBlocks;
  readonly #blocks: number[] = [];
  #length = 0;

  constructor(pool: LatentBlocks) {
    this.pool = pool;
  }

  /** Positions held. */
  get length(): number {
    return this.#length;
  }

  /** In the order of the positions; those behind the last position are reserved. */
  get blocks(): readonly number[] {
    return this.#blocks;
  }

  /** Blocks that `reserve(count)` would take from the pool. */
  countMissing(count: number): number {
    const missing = Math.max(0, blocksFor(this.#length + count) - this.#blocks.length);
    return missing + (count > 0 && this.#isEndShared() ? 1 : 0);
  }

  /**
   * Make room for `count` more positions; false, with nothing taken, if too few blocks are free.
   */
  reserve(count: number): boolean {
    if (this.countMissing(count) > this.pool.numFree) return false;
    if (count > 0 && this.#isEndShared()) this.#copyEnd();
    while (this.#blocks.length < blocksFor(this.#length + count)) this.#blocks.push(this.#take());
    return true;
  }

  /** Begin with whole blocks, whose references pass to this cache. */
  adopt(blocks: readonly number[]): void {
    assert(this.#blocks.length === 0, "only an empty cache adopts blocks");
    this.#blocks.push(...blocks);
    this.#length = blocks.length * LATENT_BLOCK_TOKENS;
  }

  /** Count `count` more positions, whose rows all layers have written. */
  advance(count: number): void {
    const isReserved = this.#length + count <= this.#blocks.length * LATENT_BLOCK_TOKENS;
    assert(count >= 0 && isReserved, `${count} positions behind ${this.#length} are not reserved`);
    this.#length += count;
  }

  /** Forget the positions from `length` on, and release the blocks that held nothing else. */
  truncate(length: number): void {
    assert(
      isIntegerIn(length, 0, this.#length),
      `a cache of ${this.#length} positions cannot be cut to ${length}`,
    );
    this.#length = length;
    while (this.#blocks.length > blocksFor(length)) this.pool.release(this.#blocks.pop()!);
  }

  /** Whether the next position falls into a block that others read too. */
  #isEndShared(): boolean {
    const end = this.#blocks[floorDiv(this.#length, LATENT_BLOCK_TOKENS)];
    return end !== undefined && this.pool.countReferences(end) > 1;
  }

  #copyEnd(): void {
    const at = floorDiv(this.#length, LATENT_BLOCK_TOKENS);
    const shared = this.#blocks[at]!;
    const own = this.#take();
    this.pool.copy(shared, own);
    this.pool.release(shared);
    this.#blocks[at] = own;
  }

  #take(): number {
    const block = this.pool.allocate();
    assert(block !== null, "a block that was counted as free is not");
    return block;
  }
}
