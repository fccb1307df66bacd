/**
 * @file How a decoder's tokens are spread over the experts of each layer.
 *
 *     offsets_LG     per MoE layer the first row of each expert, behind them all rows; G = E + 1
 *     load_LE        tokens that chose each expert; what is long ago counts half, a quarter, …
 *
 * The layers of a pass leave their offsets in one tensor, which stands still while passes are
 * replayed; it is read when the pass is over. Logical experts are counted, wherever they are.
 */
import { type ModelConfig, moeLayerIndices } from "../model/config.ts";
import type { Arena } from "../tensor/arena.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";

/** Tokens after which what was counted weighs half. */
const HALF_LIFE_TOKENS = 65_536;

export class ExpertLoad {
  /** The main model's MoE layers. */
  readonly layerIndexes: readonly number[];
  readonly #numExperts: number;
  readonly #load: Float64Array;
  /** Of late. */
  #numTokens = 0;
  #totalTokens = 0;

  constructor(config: ModelConfig) {
    this.layerIndexes = moeLayerIndices(config).filter((index) => index < config.numLayers);
    this.#numExperts = config.numRoutedExperts;
    this.#load = new Float64Array(this.layerIndexes.length * this.#numExperts);
  }

  /** Room for the offsets of one pass. */
  allocate(arena: Arena): Tensor<"i32"> {
    return arena.allocate("i32", [Math.max(1, this.layerIndexes.length), this.#numExperts + 1]);
  }

  /** For `Pass.nextOffsets`: a row of `offsets` for each layer, as they come. */
  rowsOf(offsets: Tensor<"i32">): () => Tensor<"i32"> {
    let row = 0;
    return () => sliceRows(offsets, row, ++row);
  }

  /** Count what a pass over `numTokens` tokens left, in the offsets of its micro-batches. */
  count(offsets: readonly Tensor<"i32">[], numTokens: number): void {
    for (const each of offsets) this.#add(view(each));
    this.#totalTokens += numTokens;
    this.#numTokens += numTokens;
    if (this.#numTokens < HALF_LIFE_TOKENS) return;
    this.#numTokens /= 2;
    this.#load.forEach((load, index) => {
      this.#load[index] = load / 2;
    });
  }

  #add(ends: Int32Array): void {
    const perLayer = this.#numExperts;
    for (let layer = 0; layer < this.layerIndexes.length; layer++) {
      for (let expert = 0; expert < perLayer; expert++) {
        const at = layer * (perLayer + 1) + expert;
        this.#load[layer * perLayer + expert]! += ends[at + 1]! - ends[at]!;
      }
    }
  }

  /** Tokens ever counted. */
  get totalTokens(): number {
    return this.#totalTokens;
  }

  /** The loads of all experts in the layer that is number `order` of `layerIndexes`. */
  ofLayer(order: number): Float64Array {
    return this.#load.slice(order * this.#numExperts, (order + 1) * this.#numExperts);
  }

  /** The largest load divided by the mean, for each of `layerIndexes`; 1 before any token. */
  maxOverMean(): readonly number[] {
    return this.layerIndexes.map((_, order) => {
      const load = this.ofLayer(order);
      const sum = load.reduce((total, each) => total + each, 0);
      return sum === 0 ? 1 : (Math.max(...load) * this.#numExperts) / sum;
    });
  }
}
