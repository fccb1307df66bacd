/**
 * @file How much memory training a configuration takes, from the configuration alone.
 *
 * One line here for each allocation of the layers, as bytes a token; the test holds it against what
 * the arenas measured. Not counted: the padding of tensors to cache lines, the partial sums of
 * norms, RoPE tables, threads' panels, the rest of the huge page that an arena ends in.
 *
 *   saved        until the step ends          (deep models: nearly all of it)
 *   scratch      the largest call             (the head's logits, or the rows of the experts)
 *   weightGrads  the largest half of a block  (operands that wait for the queue)
 */
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { countLayers, isMoeLayer, type ModelConfig } from "./config.ts";
import { isTiledActivation } from "./gated-activation.ts";
import { headChunkRows } from "./head.ts";
import type { Precision } from "./model-types.ts";
import { isColumnTile } from "./operand.ts";
import { parameterBytes } from "./parameter-bytes.ts";
import { computeTypeOf } from "./parameters.ts";
import {
  isScaledRecipe,
  type PrecisionRecipe,
  plainRecipe,
  type TensorClass,
} from "./precision-recipe.ts";
import { rowBytes } from "./scaled-shape.ts";

const INTEGER_BYTES = DTYPE_BYTES.i32;

export interface MemoryPrediction {
  /** Parameters. */
  readonly values: number;
  readonly gradients: number;
  /** What products read beside the values: bf16 copies, or FP8 codes and scales. */
  readonly compute: number;
  /** Two moments a parameter. */
  readonly optimizer: number;
  readonly saved: number;
  readonly scratch: number;
  readonly weightGrads: number;
  readonly total: number;
}

/** Bytes of a training step over `numTokens` positions at once. */
export function predictMemory(
  config: ModelConfig,
  precision: Precision | PrecisionRecipe,
  numTokens: number,
): MemoryPrediction {
  const recipe = typeof precision === "string" ? plainRecipe(precision) : precision;
  const parameters = parameterBytes(config, recipe);
  // Muon has them too, for one state format; its second one is used where AdamW moves.
  const momentBytes = 2 * rowBytes(recipe.tensors.moment, 1);
  const optimizer = (parameters.values / DTYPE_BYTES.f32) * momentBytes;
  const widths = new Widths(config, recipe);
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
export function activationBytesPerToken(
  config: ModelConfig,
  precision: Precision | PrecisionRecipe,
): number {
  const recipe = typeof precision === "string" ? plainRecipe(precision) : precision;
  return new Widths(config, recipe).saved();
}

/** Bytes that a class of tensors adds to those for each token, over all layers. */
export function cachedBytesPerToken(
  config: ModelConfig,
  recipe: PrecisionRecipe,
  name: TensorClass,
): number {
  return new Widths(config, recipe).cachedBy(name);
}

/**
 * Bytes a token of everything the layers allocate; f bytes of a float, c of a product's operand.
 */
class Widths {
  readonly #config: ModelConfig;
  readonly #f = DTYPE_BYTES.f32;
  readonly #c: number;
  readonly #recipe: PrecisionRecipe;
  readonly #isScaled: boolean;
  readonly #queryDim: number;
  readonly #keyValueDim: number;
  readonly #valueDim: number;
  readonly #downDim: number;
  readonly #sharedDim: number;
  readonly #layers: readonly number[];

  constructor(config: ModelConfig, recipe: PrecisionRecipe) {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = config;
    this.#config = config;
    this.#recipe = recipe;
    this.#isScaled = isScaledRecipe(recipe);
    this.#c = DTYPE_BYTES[computeTypeOf(recipe)];
    this.#queryDim = numHeads * (qkNopeHeadDim + qkRopeHeadDim);
    this.#keyValueDim = numHeads * (qkNopeHeadDim + vHeadDim);
    this.#valueDim = numHeads * vHeadDim;
    this.#downDim = config.kvLoraRank + qkRopeHeadDim;
    this.#sharedDim = config.numSharedExperts * config.moeIntermediateDim;
    this.#layers = Array.from({ length: countLayers(config) }, (_, index) => index);
  }

  saved(): number {
    const { hiddenDim, numLayers, numMtpModules } = this.#config;
    // One stream before each block and one after the last; two tensors that carry gradients.
    const streams = numLayers + 1 + 2;
    const modules = numMtpModules === 0 ? 0 : 1 + 2 * numMtpModules;
    const tokens = INTEGER_BYTES * (numMtpModules + 2 + 1);
    const losses = 2 * (1 + numMtpModules) * this.#f;
    const blocks = this.#layers.reduce((sum, index) => sum + this.#savedByBlock(index), 0);
    return (streams + modules) * hiddenDim * this.#f + tokens + losses + blocks;
  }

  /** Everything that the recipe caches, of one class. */
  cachedBy(name: TensorClass): number {
    return this.#layers.reduce((sum, index) => sum + (this.#cached(index)[name] ?? 0), 0);
  }

  #savedByBlock(layerIndex: number): number {
    const { hiddenDim, qLoraRank } = this.#config;
    const floats = hiddenDim + (qLoraRank ?? 0) + this.#downDim;
    const classes = Object.values(this.#cached(layerIndex)).reduce((sum, bytes) => sum + bytes, 0);
    return floats * this.#f + classes + (this.#isMoe(layerIndex) ? this.#routingBytes() : 0);
  }

  /** Bytes of a block's tensors that the recipe decides on. */
  #cached(layerIndex: number): Partial<Record<TensorClass, number>> {
    const { hiddenDim, intermediateDim, moeIntermediateDim } = this.#config;
    const { numExpertsPerToken: chosen } = this.#config;
    const bytes = (name: TensorClass, width: number): number => {
      const rule = this.#recipe.tensors[name];
      return rule.held === "cached" ? rowBytes(rule, width) : 0;
    };
    const attention = {
      linearInput: bytes("linearInput", hiddenDim),
      attentionInput: bytes("attentionInput", this.#queryDim + this.#keyValueDim),
      attentionOutput: bytes("attentionOutput", this.#valueDim),
    };
    if (!this.#isMoe(layerIndex)) {
      return {
        ...attention,
        linearInput: 2 * attention.linearInput,
        swigluInput: bytes("swigluInput", 2 * intermediateDim),
      };
    }
    const routed = chosen * bytes("swigluInput", 2 * moeIntermediateDim);
    const shared = this.#sharedDim === 0 ? 0 : bytes("swigluInput", 2 * this.#sharedDim);
    return {
      ...attention,
      dispatch: bytes("dispatch", hiddenDim),
      swigluInput: routed + shared,
    };
  }

  /** Scores, choice, weights and plan. */
  #routingBytes(): number {
    const { numRoutedExperts, numExpertsPerToken: chosen } = this.#config;
    const gate = numRoutedExperts * this.#f + chosen * (INTEGER_BYTES + this.#f);
    return gate + chosen * (2 * INTEGER_BYTES + this.#f);
  }

  scratch(numTokens: number): number {
    const { hiddenDim, vocabSize, numMtpModules } = this.#config;
    const chunkRows = Math.min(numTokens, headChunkRows(vocabSize));
    const logits = chunkRows * vocabSize * (this.#f + (this.#c < this.#f ? this.#c : 0));
    const aroundHead = hiddenDim * this.#c;
    const block = this.#blockScratch();
    if (numMtpModules === 0) return Math.max(logits + numTokens * aroundHead, numTokens * block);
    // A module's head and its backward stand on the gradient of its norm.
    const moduleHead = hiddenDim * this.#f;
    const duringModule = moduleHead + Math.max(4 * hiddenDim * this.#f, block);
    const head = logits + numTokens * (aroundHead + moduleHead);
    return Math.max(head, numTokens * (duringModule + hiddenDim * this.#c));
  }

  /** The larger of forward and backward of the largest half of a block. */
  #blockScratch(): number {
    const { hiddenDim } = this.#config;
    const halves = this.#layers.map((index) =>
      this.#isMoe(index) ? this.#moeScratch() : this.#denseScratch(),
    );
    return hiddenDim * this.#f + Math.max(this.#attentionScratch(), ...halves);
  }

  #attentionScratch(): number {
    const { qLoraRank, numHeads, qkRopeHeadDim, kvLoraRank, hiddenDim } = this.#config;
    const rope = numHeads * qkRopeHeadDim;
    const gradients = this.#queryDim + this.#keyValueDim + this.#downDim;
    if (!this.#isScaled) {
      const during = Math.max(this.#valueDim + rope, 2 * (qLoraRank ?? 0), kvLoraRank);
      return (gradients + during) * this.#f;
    }
    const isAgain = this.#recipe.tensors.attentionInput.held === "recomputed";
    const again = isAgain ? (this.#queryDim + this.#keyValueDim) * this.#f : 0;
    const attended = (this.#valueDim + rope) * this.#f + this.#operand(hiddenDim);
    // Norms exist as codes alone where weight gradients read tiles of one column.
    const normed = isColumnTile(this.#recipe.tensors.wgradInput) ? 0 : this.#c;
    const keyValue = kvLoraRank * (this.#f + normed) + this.#operand(this.#keyValueDim);
    const query =
      qLoraRank === null ? 0 : qLoraRank * (2 * this.#f + normed) + this.#operand(this.#queryDim);
    return again + gradients * this.#f + Math.max(attended, keyValue, query);
  }

  #denseScratch(): number {
    const { intermediateDim, hiddenDim } = this.#config;
    if (!this.#isScaled) return intermediateDim * this.#f;
    return this.#swigluScratch(intermediateDim, this.#operand(hiddenDim));
  }

  #moeScratch(): number {
    const { hiddenDim, numExpertsPerToken: chosen, moeIntermediateDim } = this.#config;
    const rows = chosen * (hiddenDim + 2) * this.#f;
    if (!this.#isScaled) {
      return rows + Math.max(chosen * moeIntermediateDim, this.#sharedDim) * this.#f;
    }
    const gathered = (chosen + 1) * this.#operand(hiddenDim);
    return rows + chosen * this.#swigluScratch(moeIntermediateDim, 0) + gathered;
  }

  /** [gate | up] and the activation, forward; backward their gradients, as codes or opened. */
  #swigluScratch(width: number, dOut: number): number {
    if (isTiledActivation(this.#recipe, width)) {
      const forward = 2 * width * this.#f + this.#operand(width);
      return Math.max(forward, this.#operand(2 * width) + width * this.#f + dOut);
    }
    const open = 2 * width * this.#f + width * this.#c + 2 * width * this.#c;
    return open + Math.max(width * this.#f + dOut, this.#operand(2 * width));
  }

  /** A row of an FP8 operand that passes. */
  #operand(width: number): number {
    return rowBytes(this.#recipe.tensors.outputGradient, width);
  }

  weightGrads(): number {
    const { hiddenDim, qLoraRank, kvLoraRank, numMtpModules } = this.#config;
    const attention =
      kvLoraRank + this.#keyValueDim + this.#downDim + this.#queryDim + 2 * (qLoraRank ?? 0);
    const halves = this.#layers.map((index) =>
      this.#isMoe(index) ? this.#moeOperands() : 3 * this.#config.intermediateDim,
    );
    const joined = numMtpModules === 0 ? 0 : 3 * hiddenDim * this.#c;
    if (this.#isScaled) {
      // Codes and, along 128 tokens, their scales; the gate's operands are plain.
      const scaled = 1 + this.#f / 128;
      const hasMoe = this.#layers.some((index) => this.#isMoe(index));
      const gate = hasMoe ? (hiddenDim + this.#config.numRoutedExperts) * this.#c : 0;
      const block = Math.max(attention + this.#valueDim, ...halves) + 2 * hiddenDim;
      return Math.max(block * scaled + gate, joined);
    }
    return Math.max((2 * hiddenDim + Math.max(attention, ...halves)) * this.#c, joined);
  }

  #moeOperands(): number {
    const { hiddenDim, numExpertsPerToken, moeIntermediateDim, numRoutedExperts } = this.#config;
    const experts = numExpertsPerToken * (3 * moeIntermediateDim + 2 * hiddenDim);
    return experts + (this.#isScaled ? 0 : numRoutedExperts) + 3 * this.#sharedDim;
  }

  #isMoe(layerIndex: number): boolean {
    return isMoeLayer(this.#config, layerIndex);
  }
}
