/**
 * @file Bytes of a model's parameters under a recipe, from the configuration alone.
 */
import { divExact } from "../base/integers.ts";
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { scaledBytes } from "../tensor/scaled-tensor.ts";
import type { ModelConfig } from "./config.ts";
import { declareParameters, isScalable } from "./parameter-declarations.ts";
import { layOut, SPAN_NAMES } from "./parameter-layout.ts";
import { computeTypeOf } from "./parameters.ts";
import { isScaledRecipe, type PrecisionRecipe } from "./precision-recipe.ts";
import { scaledShape } from "./scaled-shape.ts";

/**
 * Bytes of the values, of the gradients (as many) and of what products read beside them, padding of
 * the spans included.
 */
export function parameterBytes(
  config: ModelConfig,
  recipe: PrecisionRecipe,
): { readonly values: number; readonly gradients: number; readonly compute: number } {
  const computeType = computeTypeOf(recipe);
  const layout = layOut(config);
  const elements = SPAN_NAMES.reduce((sum, name) => sum + layout.elements[name], 0);
  const values = elements * DTYPE_BYTES[computeType === "bf16" ? "f32" : computeType];
  const rounded = SPAN_NAMES.reduce(
    (sum, name) => sum + layout.elements[name] - layout.roundedStart[name],
    0,
  );
  const plain = computeType === "bf16" ? rounded * DTYPE_BYTES.bf16 : 0;
  const compute = isScaledRecipe(recipe) ? scaledComputeBytes(config, recipe) : plain;
  return { values, gradients: values, compute };
}

/** FP8 weights and their scales, and bf16 copies of what else products read. */
function scaledComputeBytes(config: ModelConfig, recipe: PrecisionRecipe): number {
  const copies = declareParameters(config).reduce((sum, declaration) => {
    const { role, shape } = declaration;
    const isLookedUp = role === "embedding" && !config.tieWordEmbeddings;
    if (role === "norm" || isLookedUp || isScalable(declaration)) return sum;
    return sum + shape[0] * shape[1] * DTYPE_BYTES.bf16;
  }, 0);
  return copies + scaledWeightBytes(config, recipe).bytes;
}

/** The weights that a scaled recipe stores in FP8: how many values, and the bytes with scales. */
export function scaledWeightBytes(
  config: ModelConfig,
  { tensors }: PrecisionRecipe,
): { readonly count: number; readonly bytes: number } {
  let [count, bytes] = [0, 0];
  for (const declaration of declareParameters(config).filter(isScalable)) {
    const { role, shape } = declaration;
    const matrices = role === "experts" ? config.numRoutedExperts : 1;
    const one = scaledShape(tensors.weight, divExact(shape[0], matrices), shape[1]);
    count += shape[0] * shape[1];
    bytes += matrices * scaledBytes(one);
  }
  return { count, bytes };
}
