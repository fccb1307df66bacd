/**
 * @file What a model is to those who train and evaluate it: batches in, losses and gradients out.
 *
 * The trainer sees parameters as flat spans (parameters.ts), a step as one call, and the state that
 * is not trained by gradients (the routing biases) as a list of tensors.
 */
import type { AttentionProducts } from "../kernels/attention/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import type { ExpertShare } from "./expert-share.ts";
import type { ParameterSet } from "./parameters.ts";
import type { PrecisionRecipe } from "./precision-recipe.ts";
import type { WeightFormat } from "./weight-format.ts";

/** The plain recipes by name: operands of matrix products are rounded to bf16, or not at all. */
export type Precision = "bf16" | "f32";

export interface ModelOptions {
  /** A plain recipe by name, or any recipe. */
  readonly precision: Precision | PrecisionRecipe;
  /**
   * What everything else is computed in; f64 for gradient checks, with precision "f32". f32 if left
   * out.
   */
  readonly floatType?: FloatType;
  /**
   * What operands of attention's own products (scores, values) are rounded to in training and
   * evaluation; as those of the linear layers if left out.
   */
  readonly attention?: AttentionProducts;
  /**
   * Of the initial parameters; null leaves zeros, for a checkpoint to fill (then `refreshCompute`).
   */
  readonly seed: number | null;
  /**
   * Whether gradients have memory; true if left out. Without, the model evaluates and generates
   * only.
   */
  readonly gradients?: boolean;
  /** What is kept of the weights, to infer alone, without gradients; master values if left out. */
  readonly weights?: WeightFormat | undefined;
  /** The ranks that share the routed experts; all experts are here if left out. */
  readonly experts?: ExpertShare | undefined;
}

/**
 * Token sequences, one after another, each of `seqLength + 1 + numMtpModules` tokens: position i
 * reads token i, the main head predicts token i + 1, MTP module k (from 1) reads token i + k too
 * and predicts token i + k + 1.
 */
export interface Batch {
  readonly tokens: Int32Array;
  readonly numSequences: number;
  /** Positions of a sequence that are predicted from. */
  readonly seqLength: number;
}

export interface StepOptions {
  /** λ: weight of the mean of the MTP losses. */
  readonly mtpWeight: number;
  /** α: weight of the sequence-wise balance loss, summed over the MoE layers. */
  readonly balanceWeight: number;
  /** Weight of the mean square of log Σ exp(logits). */
  readonly zLoss: number;
  /** Without gradients the losses alone are computed. */
  readonly computeGradients: boolean;
  /**
   * Multiplies the gradients, not the reported losses. They are otherwise those of the mean over
   * this batch's tokens, and always added to what stands in the ParameterSet: M micro-batches of
   * equal size pass 1/M each. 1 if left out.
   */
  readonly lossScale?: number;
}

export interface StepResult {
  /** Mean over the tokens of −ln p(next token), in nats. */
  readonly loss: number;
  /** The same of each MTP module, unweighted. */
  readonly mtpLosses: readonly number[];
  /**
   * Σ over the MoE layers of Σ_i f_i P_i, mean over the sequences, unweighted; 0 if `balanceWeight`
   * is 0.
   */
  readonly balanceLoss: number;
  /**
   * What the gradients are the gradients of (before `lossScale`): the weighted sum of all losses.
   */
  readonly objective: number;
  /**
   * Tokens that chose each expert, per MoE layer in the order of `moeLayerIndices`; each sums to
   * T·K.
   */
  readonly expertLoad: readonly Int32Array[];
}

/**
 * The routing bias of one MoE layer: read by the gate, moved by the trainer, written to
 * checkpoints.
 */
export interface GateBias {
  readonly layerIndex: number;
  /** [1, numRoutedExperts], float. */
  readonly bias: Tensor<FloatType>;
}

/** What `Model` offers; the trainer codes against this. */
export interface TrainableModel {
  readonly config: ModelConfig;
  readonly recipe: PrecisionRecipe;
  readonly parameters: ParameterSet;
  /** One a MoE layer (MTP modules last) with topkMethod "noaux_tc"; otherwise empty. */
  readonly gateBiases: readonly GateBias[];
  /** Indexes of the MoE layers; MTP module k (from 0) has index numLayers + k. */
  readonly moeLayerIndices: readonly number[];
  /**
   * Loss of a batch, and its gradients added to `parameters`. Reads the compute copies:
   * `refreshCompute` first.
   */
  forwardBackward(batch: Batch, options: StepOptions): StepResult;
  /** −ln p of each next token by the main head: [numSequences · seqLength]. */
  evaluate(batch: Batch): Float32Array;
  /** Where the batch's forward pass stops being finite; undefined if it does not. */
  findBrokenStream(batch: Batch): BrokenStream | undefined;
}

/** What a part of the model computed, with values that are not finite. */
export interface BrokenStream {
  /** A parameter's name, or what the names of the part's parameters begin with. */
  readonly part: string;
  readonly numBroken: number;
  readonly numElements: number;
}
