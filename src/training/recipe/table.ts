/**
 * @file A recipe as a table for people: every class of tensors, how it is stored, and the bytes it
 * costs under a configuration.
 *
 * Bytes a token are those of what is cached for the backward pass, over all layers; bytes a
 * parameter those of what is kept beside it. What passes or is recomputed costs none of either.
 */
import type { ModelConfig } from "../../model/config.ts";
import { countParameters } from "../../model/counts.ts";
import { activationBytesPerToken, cachedBytesPerToken } from "../../model/memory.ts";
import { scaledWeightBytes } from "../../model/parameter-bytes.ts";
import {
  isScaledRecipe,
  type PrecisionRecipe,
  TENSOR_CLASSES,
  type TensorClass,
  type TensorRule,
} from "../../model/precision-recipe.ts";
import { rowBytes } from "../../model/scaled-shape.ts";

/** One row: bytes are null where the class costs none. */
export interface RecipeRow {
  readonly tensors: string;
  readonly format: string;
  readonly tile: string;
  readonly scales: string;
  readonly held: string;
  readonly bytesPerToken: number | null;
  readonly bytesPerParameter: number | null;
}

const MEANING: Readonly<Record<TensorClass, string>> = {
  weight: "weights of linear layers and experts",
  linearInput: "inputs of attention and dense layers",
  innerInput: "inputs of MLA's up-projections",
  attentionInput: "queries, keys and values",
  attentionOutput: "attention's output",
  dispatch: "inputs of experts (between ranks)",
  swigluInput: "inputs of SwiGLU",
  swigluOutput: "outputs of SwiGLU",
  outputGradient: "gradients of linear outputs",
  dispatchGradient: "gradients into experts (between ranks)",
  wgradInput: "inputs in weight gradients",
  wgradGradient: "gradients in weight gradients",
  combine: "results of experts (between ranks)",
  moment: "both moments of the optimizer",
};

/** The rows of a recipe, then what no recipe decides. */
export function recipeTable(config: ModelConfig, recipe: PrecisionRecipe): readonly RecipeRow[] {
  const rows = TENSOR_CLASSES.map((name) => rowOf(config, recipe, name));
  const decided = TENSOR_CLASSES.reduce(
    (sum, name) => sum + cachedBytesPerToken(config, recipe, name),
    0,
  );
  const fixed = (tensors: string, format: string, held: string): RecipeRow => ({
    ...{ tensors, format, tile: "none", scales: "none", held },
    ...{ bytesPerToken: null, bytesPerParameter: null },
  });
  const plain = isScaledRecipe(recipe) ? "bf16" : recipe.tensors.weight.format;
  return [
    ...rows,
    fixed("operands of head, gate, MTP projection and attention", plain, "passing"),
    { ...fixed("master weights", "f32", "kept"), bytesPerParameter: 4 },
    { ...fixed("gradients", "f32", "kept"), bytesPerParameter: 4 },
    fixed("norms, softmax, scores of experts, embedding", "f32", "recomputed"),
    {
      ...fixed("residual stream, latents, routing, losses", "f32", "cached"),
      bytesPerToken: activationBytesPerToken(config, recipe) - decided,
    },
  ];
}

function rowOf(config: ModelConfig, recipe: PrecisionRecipe, name: TensorClass): RecipeRow {
  const rule: TensorRule = recipe.tensors[name];
  const cached = cachedBytesPerToken(config, recipe, name);
  return {
    tensors: MEANING[name],
    ...rule,
    bytesPerToken: rule.held === "cached" ? cached : null,
    bytesPerParameter: keptBytes(config, recipe, name),
  };
}

function keptBytes(config: ModelConfig, recipe: PrecisionRecipe, name: TensorClass): number | null {
  if (name === "moment") return 2 * rowBytes(recipe.tensors.moment, 1);
  if (name !== "weight") return null;
  if (recipe.tensors.weight.format === "f32") return 0;
  if (!isScaledRecipe(recipe)) return 2;
  const { bytes, count } = scaledWeightBytes(config, recipe);
  return count === 0 ? null : bytes / count;
}

/** Bytes a parameter of optimizer and gradient, and bytes a token of everything cached. */
export function recipeTotals(
  config: ModelConfig,
  recipe: PrecisionRecipe,
): { readonly cachedBytesPerToken: number; readonly optimizerBytes: number } {
  const moments = 2 * rowBytes(recipe.tensors.moment, 1);
  return {
    cachedBytesPerToken: activationBytesPerToken(config, recipe),
    optimizerBytes: countParameters(config).total * moments,
  };
}
