/**
 * @file How much memory training a configuration takes, from the configuration alone.
 *
 * One line here for each allocation of the layers, as bytes a token; the test holds it against what
 * the arenas measured. Not counted: the padding of tensors to cache lines, the partial sums of
 * norms, RoPE tables, threads' panels.
 *
 *   saved        until the step ends          (deep models: nearly all of it)
 *   scratch      the largest call             (the head's logits, or the rows of the experts)
 *   weightGrads  the largest half of a block  (operands that wait for the queue)
 */
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { countLayers, isMoeLayer, type ModelConfig } from "./config.ts";
import { headChunkRows } from "./head.ts";
import type { Precision } from "./model-types.ts";
import { parameterBytes } from "./parameters.ts";

/** AdamW keeps two f32 moments a parameter. */
const MOMENT_BYTES = 8;
const INTEGER_BYTES = DTYPE_BYTES.i32;

export interface MemoryPrediction {
  /** Parameters. */
  readonly values: number;
  readonly gradients: number;
  /** bf16 copies for products. */
  readonly compute: number;
  /** Moments of AdamW. */
  readonly optimizer: number;
  readonly saved: number;
  readonly scratch: number;
  readonly weightGrads: number;
  readonly total: number;
}

/** Bytes of a training step over `numTokens` positions at once. */
export function predictMemory(
  config: ModelConfig,
  precision: Precision,
  numTokens: number,
): MemoryPrediction {
  const parameters = parameterBytes(config, precision);
  const optimizer = (parameters.values / DTYPE_BYTES.f32) * MOMENT_BYTES;
  const widths = new Widths(config, precision);
  const saved = numTokens * widths.saved();
  const scratch = widths.scratch(numTokens);
  const weightGrads = numTokens * widths.weightGrads();
  const held = parameters.values + parameters.gradients + parameters.compute + optimizer;
  return {
    ...parameters,
    optimizer,
    saved,
    scratch,
    weightGrads,
    total: held + saved + scratch + weightGrads,
  };
}

/** Bytes that stay until the step ends, for each token. */
export function activationBytesPerToken(config: ModelConfig, precision: Precision): number {
  return new Widths(config, precision).saved();
}

/**
 * Bytes a token of everything the layers allocate; f bytes of a float, c of a product's operand.
 */
class Widths {
  readonly #config: ModelConfig;
  readonly #f = DTYPE_BYTES.f32;
  readonly #c: number;
  readonly #queryDim: number;
  readonly #keyValueDim: number;
  readonly #valueDim: number;
  readonly #downDim: number;
  readonly #sharedDim: number;
  readonly #layers: readonly number[];

  constructor(config: ModelConfig, precision: Precision) {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = config;
    this.#config = config;
    this.#c = DTYPE_BYTES[precision];
    this.#queryDim = numHeads * (qkNopeHeadDim + qkRopeHeadDim);
    this.#keyValueDim = numHeads * (qkNopeHeadDim + vHeadDim);
    this.#valueDim = numHeads * vHeadDim;
    this.#downDim = config.kvLoraRank + qkRopeHeadDim;
    this.#sharedDim = config.numSharedExperts * config.moeIntermediateDim;
    this.#layers = Array.from({ length: countLayers(config) }, (_, index) => index);
  }

  saved(): number {
    const { hiddenDim, numLayers, numMtpModules, numHeads } = this.#config;
    // One stream before each block and one after the last; two tensors that carry gradients.
    const streams = numLayers + 1 + 2;
    const modules = numMtpModules === 0 ? 0 : 1 + 2 * numMtpModules;
    const tokens = INTEGER_BYTES * (numMtpModules + 2 + 1 + numHeads);
    const blocks = this.#layers.reduce((sum, index) => sum + this.#savedByBlock(index), 0);
    return (streams + modules) * hiddenDim * this.#f + tokens + blocks;
  }

  #savedByBlock(layerIndex: number): number {
    const { hiddenDim, qLoraRank } = this.#config;
    const floats =
      hiddenDim + (qLoraRank ?? 0) + this.#queryDim + this.#downDim + this.#keyValueDim;
    const attention = floats * this.#f + this.#valueDim * this.#c;
    return attention + (this.#isMoe(layerIndex) ? this.#savedByMoe() : this.#savedByDense());
  }

  #savedByDense(): number {
    return 2 * this.#config.intermediateDim * this.#f;
  }

  #savedByMoe(): number {
    const { numRoutedExperts, numExpertsPerToken: chosen, moeIntermediateDim } = this.#config;
    const gate = numRoutedExperts * this.#f + chosen * (INTEGER_BYTES + this.#f);
    const plan = chosen * (3 * INTEGER_BYTES + this.#f);
    return gate + plan + 2 * (chosen * moeIntermediateDim + this.#sharedDim) * this.#f;
  }

  scratch(numTokens: number): number {
    const { hiddenDim, vocabSize, numMtpModules } = this.#config;
    const chunkRows = Math.min(numTokens, headChunkRows(vocabSize));
    const logits = chunkRows * vocabSize * (this.#f + (this.#c < this.#f ? this.#c : 0));
    const aroundHead = hiddenDim * this.#c + 2 * this.#f;
    const moduleHead = numMtpModules === 0 ? 0 : hiddenDim * this.#f;
    const moduleJoin = numMtpModules === 0 ? 0 : 4 * hiddenDim * this.#f;
    // A module's head and its backward stand on the gradient of its norm.
    const duringModule = moduleHead + Math.max(moduleJoin, this.#blockScratch());
    const head = logits + numTokens * (aroundHead + moduleHead);
    const main = hiddenDim * this.#c + this.#blockScratch();
    return Math.max(head, numTokens * Math.max(main, duringModule + hiddenDim * this.#c));
  }

  /** The larger of forward and backward of the largest half of a block. */
  #blockScratch(): number {
    const { hiddenDim, qLoraRank, numHeads, qkRopeHeadDim, kvLoraRank } = this.#config;
    const during = Math.max(
      this.#valueDim + numHeads * qkRopeHeadDim,
      2 * (qLoraRank ?? 0),
      kvLoraRank,
    );
    const attention = (this.#queryDim + this.#keyValueDim + this.#downDim + during) * this.#f;
    const halves = this.#layers.map((index) =>
      this.#isMoe(index) ? this.#moeScratch() : this.#config.intermediateDim * this.#f,
    );
    return hiddenDim * this.#f + Math.max(attention, ...halves);
  }

  #moeScratch(): number {
    const { hiddenDim, numExpertsPerToken: chosen, moeIntermediateDim } = this.#config;
    const rows = chosen * (hiddenDim + 2);
    return (rows + Math.max(chosen * moeIntermediateDim, this.#sharedDim)) * this.#f;
  }

  weightGrads(): number {
    const { hiddenDim, qLoraRank, kvLoraRank, numMtpModules } = this.#config;
    const attention =
      kvLoraRank + this.#keyValueDim + this.#downDim + this.#queryDim + 2 * (qLoraRank ?? 0);
    const halves = this.#layers.map((index) =>
      this.#isMoe(index) ? this.#moeOperands() : 3 * this.#config.intermediateDim,
    );
    const block = 2 * hiddenDim + Math.max(attention, ...halves);
    return Math.max(block, numMtpModules === 0 ? 0 : 3 * hiddenDim) * this.#c;
  }

  #moeOperands(): number {
    const { hiddenDim, numExpertsPerToken, moeIntermediateDim, numRoutedExperts } = this.#config;
    const experts = numExpertsPerToken * (3 * moeIntermediateDim + 2 * hiddenDim);
    return experts + numRoutedExperts + 3 * this.#sharedDim;
  }

  #isMoe(layerIndex: number): boolean {
    return isMoeLayer(this.#config, layerIndex);
  }
}
