/**
 * @file The latent blocks of a decoder: 64 positions each, of any sequence, counted by reference.
 *
 *     latents_PC, keys_PR      one normalised latent and one turned key a layer and position
 *
 * Block b is rows [64b, 64b + 64) of every layer's two tensors; MTP modules have layers of their
 * own behind the main model's. Latents are stored as products take them (bf16 in training), keys in
 * the float type, as training has both. A block with several references is shared and never
 * written. Allocates once; says null when no block is free.
 */
import { assert } from "../base/errors.ts";
import { ceilDiv, isIntegerIn } from "../base/integers.ts";
import { LATENT_BLOCK_TOKENS } from "../kernels/latent-attention/contract.ts";
import { countLayers } from "../model/config.ts";
import type { Model } from "../model/model.ts";
import type { ComputeType } from "../model/parameters.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES, type FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** What one layer caches, a row a position. */
export interface LatentLayer {
  readonly latents: Tensor<ComputeType>;
  readonly keys: Tensor<FloatType>;
}

/** Blocks that `count` positions take. */
export function blocksFor(count: number): number {
  return ceilDiv(count, LATENT_BLOCK_TOKENS);
}

/** Bytes of one position in all layers. */
export function latentBytesPerToken({
  config,
  computeType,
  floatType,
}: Pick<Model, "config" | "computeType" | "floatType">): number {
  const latent = config.kvLoraRank * DTYPE_BYTES[computeType];
  return countLayers(config) * (latent + config.qkRopeHeadDim * DTYPE_BYTES[floatType]);
}

export class LatentBlocks {
  readonly numBlocks: number;
  readonly #layers: readonly LatentLayer[];
  readonly #tensors: readonly Tensor[];
  readonly #references: Int32Array;
  /** The last is the next to be given out. */
  readonly #free: number[];
  /** When each was given out last, in milliseconds of the process. */
  readonly #takenAt: Float64Array;
  /** Told how many milliseconds a block was in use, when it becomes free. */
  onFree: (milliseconds: number) => void = () => {};

  /** Allocates from `arena`, which must outlive the blocks. */
  constructor(
    arena: Arena,
    { config, computeType, floatType }: Pick<Model, "config" | "computeType" | "floatType">,
    numBlocks: number,
  ) {
    assert(isIntegerIn(numBlocks, 1, 2 ** 24), `there must be at least one block (${numBlocks})`);
    const numRows = numBlocks * LATENT_BLOCK_TOKENS;
    this.numBlocks = numBlocks;
    this.#layers = Array.from({ length: countLayers(config) }, () => ({
      latents: arena.allocateZeros(computeType, [numRows, config.kvLoraRank]),
      keys: arena.allocateZeros(floatType, [numRows, config.qkRopeHeadDim]),
    }));
    this.#tensors = this.#layers.flatMap(({ latents, keys }) => [latents, keys]);
    this.#references = new Int32Array(numBlocks);
    this.#takenAt = new Float64Array(numBlocks);
    this.#free = Array.from({ length: numBlocks }, (_, index) => numBlocks - 1 - index);
  }

  get numFree(): number {
    return this.#free.length;
  }

  /** The rows of all blocks. */
  layer(layerIndex: number): LatentLayer {
    const layer = this.#layers[layerIndex];
    assert(layer !== undefined, `layer ${layerIndex} of ${this.#layers.length} is not cached`);
    return layer;
  }

  /** A block with one reference, its content undefined; null if none is free. */
  allocate(): number | null {
    const block = this.#free.pop();
    if (block === undefined) return null;
    assert(this.#references[block] === 0, `block ${block} was free and in use`);
    this.#references[block] = 1;
    this.#takenAt[block] = performance.now();
    return block;
  }

  countReferences(block: number): number {
    const count = this.#references[block];
    assert(count !== undefined, `block ${block} of ${this.numBlocks} does not exist`);
    return count;
  }

  retain(block: number): void {
    assert(this.countReferences(block) > 0, `block ${block} is free and cannot be shared`);
    this.#references[block]! += 1;
  }

  release(block: number): void {
    assert(this.countReferences(block) > 0, `block ${block} was released too often`);
    this.#references[block]! -= 1;
    if (this.#references[block] !== 0) return;
    this.#free.push(block);
    this.onFree(performance.now() - this.#takenAt[block]!);
  }

  /** Bytes of a block in all layers. */
  get blockBytes(): number {
    return this.#tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  }

  /** Copy what block `from` holds into block `to`. */
  copy(from: number, to: number): void {
    assert(this.countReferences(to) === 1, `block ${to} is shared and cannot be written`);
    for (const tensor of this.#tensors) {
      const bytes = bytesOf(tensor);
      const start = tensor.byteOffset + from * bytes;
      tensor.memory.u8.copyWithin(tensor.byteOffset + to * bytes, start, start + bytes);
    }
  }

  /** What a block holds, layer after layer; for storing it elsewhere. */
  read(block: number): Uint8Array<ArrayBuffer> {
    assert(this.countReferences(block) > 0, `block ${block} is free and holds nothing`);
    const out = new Uint8Array(this.blockBytes);
    let at = 0;
    for (const tensor of this.#tensors) {
      const bytes = bytesOf(tensor);
      const start = tensor.byteOffset + block * bytes;
      out.set(tensor.memory.u8.subarray(start, start + bytes), at);
      at += bytes;
    }
    return out;
  }

  /** Fill a block of one owner with what `read` gave. */
  write(block: number, content: Uint8Array): void {
    assert(this.countReferences(block) === 1, `block ${block} is shared and cannot be written`);
    assert(content.length === this.blockBytes, `a block has ${this.blockBytes} bytes`);
    let at = 0;
    for (const tensor of this.#tensors) {
      const bytes = bytesOf(tensor);
      tensor.memory.u8.set(content.subarray(at, at + bytes), tensor.byteOffset + block * bytes);
      at += bytes;
    }
  }

  /** Assert that free and used blocks are all blocks, each counted once. */
  checkIntegrity(): void {
    const free = new Set(this.#free);
    assert(free.size === this.#free.length, "a block is free twice");
    for (let block = 0; block < this.numBlocks; block++) {
      const isFree = this.#references[block] === 0;
      assert(isFree === free.has(block), `block ${block} is neither free nor in use, or both`);
    }
  }
}

/** Of one block. */
function bytesOf({ columns, dtype }: Tensor): number {
  return LATENT_BLOCK_TOKENS * columns * DTYPE_BYTES[dtype];
}
