/**
 * @file The precision recipes by name. FP8 is that of the DeepSeek-V3 report, one line a class of
 * tensors; model/precision-recipe.ts says what each class is and what the words mean.
 *
 * Where the report is silent: scales of linear inputs and gradients are f32 quotients, those of
 * tensors that cross ranks or are re-tiled by the report's word powers of two; inputs of MLA's
 * up-projections are recomputed with the norms they come from; the shared experts read what is
 * dispatched to the routed ones. Source: DeepSeek-V3 report §3.2.3, §3.3.
 */
import {
  type Lifetime,
  type PrecisionRecipe,
  plainRecipe,
  type ScaleKind,
  type StorageFormat,
  type TensorRule,
  type TileName,
} from "../../model/precision-recipe.ts";

export const RECIPE_NAMES = ["fp8", "bf16", "f32"] as const;
export type RecipeName = (typeof RECIPE_NAMES)[number];

function rule(
  format: StorageFormat,
  tile: TileName,
  scales: ScaleKind,
  held: Lifetime,
): TensorRule {
  return { format, tile, scales, held };
}

const FP8: PrecisionRecipe = {
  name: "fp8",
  tensors: {
    weight: rule("e4m3", "128x128", "f32", "kept"),
    linearInput: rule("e4m3", "1x128", "f32", "cached"),
    innerInput: rule("e4m3", "1x128", "f32", "recomputed"),
    attentionInput: rule("f32", "none", "none", "recomputed"),
    attentionOutput: rule("e5m6", "1x128", "powerOfTwo", "cached"),
    dispatch: rule("e4m3", "1x128", "powerOfTwo", "cached"),
    swigluInput: rule("e4m3", "1x128", "f32", "cached"),
    swigluOutput: rule("e4m3", "1x128", "f32", "recomputed"),
    outputGradient: rule("e4m3", "1x128", "f32", "passing"),
    dispatchGradient: rule("e4m3", "1x128", "powerOfTwo", "passing"),
    wgradInput: rule("e4m3", "128x1", "powerOfTwo", "passing"),
    wgradGradient: rule("e4m3", "128x1", "powerOfTwo", "passing"),
    combine: rule("bf16", "none", "none", "passing"),
    moment: rule("bf16", "none", "none", "kept"),
  },
  promotionInterval: 128,
  accumulation: "f32",
  stochasticRounding: false,
  outlierFactor: 0,
};

export const PRECISION_RECIPES: Readonly<Record<RecipeName, PrecisionRecipe>> = {
  fp8: FP8,
  bf16: plainRecipe("bf16"),
  f32: plainRecipe("f32"),
};

/** The recipe with one scale for each whole tensor: what fine-grained scales are compared with. */
export function perTensor(recipe: PrecisionRecipe): PrecisionRecipe {
  const tensors = Object.fromEntries(
    Object.entries(recipe.tensors).map(([name, stored]: [string, TensorRule]) => [
      name,
      stored.tile === "none" ? stored : { ...stored, tile: "tensor" as const },
    ]),
  );
  return {
    ...recipe,
    name: `${recipe.name}, one scale a tensor`,
    tensors: tensors as unknown as PrecisionRecipe["tensors"],
  };
}
