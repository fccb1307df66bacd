/**
 * @file What a model computes in, and the passes that follow from it: one over each batch.
 */
import { assert } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import type { AttentionProducts } from "../kernels/attention/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { ModelConfig } from "./config.ts";
import type { Batch, ModelOptions } from "./model-types.ts";
import { type ComputeType, computeTypeOf } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { type PrecisionRecipe, plainRecipe, validateRecipe } from "./precision-recipe.ts";
import { makePositions, type RopeTableCache } from "./rope.ts";

/** The types of a model's tensors. */
export interface Arithmetic {
  readonly recipe: PrecisionRecipe;
  readonly floatType: FloatType;
  readonly computeType: ComputeType;
  readonly attention: AttentionProducts;
}

/** What the options of a model ask for. */
export function arithmeticOf(options: ModelOptions): Arithmetic {
  const recipe = recipeOf(options);
  const floatType = options.floatType ?? "f32";
  const computeType = computeTypeOf(recipe);
  assert(
    computeType === floatType || floatType === "f32",
    `the recipe ${recipe.name} goes with f32, not with ${floatType}`,
  );
  const attention = options.attention ?? (computeType === "bf16" ? "bf16" : "exact");
  return { recipe, floatType, computeType, attention };
}

/** A plain recipe named with f64 as float type is the one that rounds nothing. */
function recipeOf({ precision, floatType }: ModelOptions): PrecisionRecipe {
  if (typeof precision !== "string") return validateRecipe(precision);
  return plainRecipe(precision === "f32" && floatType === "f64" ? "f64" : precision);
}

/** What all passes of a model share. */
export interface PassFrame extends Arithmetic {
  readonly device: Device;
  readonly config: ModelConfig;
  readonly ropeTables: RopeTableCache;
}

/** Assert that the batch fits the model. */
export function assertBatch(config: ModelConfig, batch: Batch): void {
  const { numSequences, seqLength, tokens } = batch;
  const { numMtpModules, maxPositionEmbeddings, vocabSize } = config;
  assert(numSequences >= 1 && seqLength >= 1, "a batch has at least one position");
  assert(
    seqLength <= maxPositionEmbeddings,
    `seqLength (${seqLength}) must be at most maxPositionEmbeddings (${maxPositionEmbeddings})`,
  );
  const rowLength = seqLength + 1 + numMtpModules;
  assert(
    tokens.length === numSequences * rowLength,
    `a batch of ${numSequences}×${seqLength} has ${numSequences * rowLength} tokens ` +
      `(${numMtpModules} MTP modules), not ${tokens.length}`,
  );
  assert(
    tokens.every((token) => token >= 0 && token < vocabSize),
    `tokens of a batch must lie in 0..${vocabSize - 1}`,
  );
}

/** A pass over `batch`, which fits the model, in the given arenas. */
export function openPass(
  frame: PassFrame,
  memory: Pick<Pass, "saved" | "scratch" | "weightGrads">,
  batch: Batch,
  balanceScale: number,
): Pass {
  assertBatch(frame.config, batch);
  const { numSequences, seqLength } = batch;
  const { device, floatType, computeType, attention } = frame;
  const tables = frame.ropeTables.atLeast(seqLength);
  return {
    device,
    floatType,
    computeType,
    attention,
    ...memory,
    numSequences,
    seqLength,
    positions: makePositions(memory.saved, tables, { numSequences, seqLength }),
    balanceScale,
  };
}
