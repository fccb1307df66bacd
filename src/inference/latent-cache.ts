/**
 * @file The latent KV cache of one sequence: what absorbed attention reads of the tokens before.
 *
 *     row_p = [normalised latent (C) | rotated key (R)]        one a layer and position p
 *
 * The latent is rounded as products take it (bf16 in training), and held in the float type.
 * Positions of one layer stand one after another. A pass over new tokens writes their rows layer by
 * layer and then `advance`s; until then the rows of no layer count. Refuses to hold more than its
 * capacity.
 */
import { assert } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";

export class LatentCache {
  /** Positions there is room for. */
  readonly capacity: number;
  readonly #layers: readonly Tensor<FloatType>[];
  #length = 0;

  /** Allocates from `arena`, which must outlive the cache. */
  constructor(arena: Arena, config: ModelConfig, capacity: number, floatType: FloatType) {
    assert(isIntegerIn(capacity, 1, 2 ** 24), `cache capacity (${capacity}) must be at least 1`);
    const columns = config.kvLoraRank + config.qkRopeHeadDim;
    this.capacity = capacity;
    this.#layers = Array.from({ length: config.numLayers }, () =>
      arena.allocate(floatType, [capacity, columns]),
    );
  }

  /** Positions held. */
  get length(): number {
    return this.#length;
  }

  /** Rows [start, end) of a layer; rows from `length` on are for the pass that is running. */
  rows(layerIndex: number, start: number, end: number): Tensor<FloatType> {
    const layer = this.#layers[layerIndex];
    assert(layer !== undefined, `layer ${layerIndex} of ${this.#layers.length} is not cached`);
    return sliceRows(layer, start, end);
  }

  /** Count `count` more positions, whose rows all layers have written. */
  advance(count: number): void {
    assert(
      count >= 0 && this.#length + count <= this.capacity,
      `${count} more positions than ${this.#length} do not fit a cache of ${this.capacity}`,
    );
    this.#length += count;
  }

  /** Forget the positions from `length` on. */
  truncate(length: number): void {
    assert(
      isIntegerIn(length, 0, this.#length),
      `a cache of ${this.#length} positions cannot be cut to ${length}`,
    );
    this.#length = length;
  }
}
