/**
 * @file A precision recipe among the settings: its schema, its names, and the short forms that a
 * file may have.
 *
 *     "recipe": "fp8"                                          a recipe by name
 *     "recipe": { "base": "fp8", "tensors": { "outputGradient": { "tile": "tensor" } } }
 *     "recipe": { … }                                          fields of the recipe there is
 *     "precision": "bf16"                                      a recipe by name, in older files
 *
 * A run folder's config.json has the whole recipe written out.
 */
import { OperationalError } from "../../base/errors.ts";
import { ACCUMULATIONS } from "../../kernels/scaled-matmul/contract.ts";
import {
  LIFETIMES,
  type PrecisionRecipe,
  SCALE_KINDS,
  type StorageFormat,
  TENSOR_CLASSES,
  type TensorRule,
  TILE_NAMES,
  validateRecipe,
} from "../../model/precision-recipe.ts";
import {
  choice,
  integer,
  orNull,
  overlay,
  real,
  type Schema,
  text,
  yesOrNo,
} from "../settings-schema.ts";
import { PRECISION_RECIPES, RECIPE_NAMES, type RecipeName } from "./recipes.ts";

const FORMATS: readonly StorageFormat[] = ["f32", "bf16", "e4m3", "e5m2", "e5m6"];

const RULE: Schema<TensorRule> = {
  format: choice(FORMATS),
  tile: choice(TILE_NAMES),
  scales: choice(SCALE_KINDS),
  held: choice(LIFETIMES),
};

export const RECIPE_SCHEMA: Schema<PrecisionRecipe> = {
  name: text,
  tensors: Object.fromEntries(TENSOR_CLASSES.map((name) => [name, RULE])) as Record<
    (typeof TENSOR_CLASSES)[number],
    Schema<TensorRule>
  >,
  promotionInterval: orNull(integer(32, 2 ** 20)),
  accumulation: choice(ACCUMULATIONS),
  stochasticRounding: yesOrNo,
  outlierFactor: real(0, 1e9),
};

/** The recipe of this name; refused with the names there are. */
export function namedRecipe(name: unknown, origin: string): PrecisionRecipe {
  const known = RECIPE_NAMES.find((other) => other === name);
  if (known !== undefined) return PRECISION_RECIPES[known];
  const given = JSON.stringify(name);
  const allowed = `${RECIPE_NAMES.join(", ")} or a recipe's fields`;
  const message = `${origin}: recipe ${given} must be ${allowed}`;
  throw new OperationalError("config.value", message, { recipe: name });
}

/**
 * A recipe from a file's content: changes of the recipe it names as `base`, fp8 if it names none.
 */
export function recipeFrom(value: unknown, origin: string): PrecisionRecipe {
  if (!isRecord(value)) return namedRecipe(value, origin);
  const { base = "fp8" satisfies RecipeName, ...changes } = value;
  return validateRecipe(overlay(RECIPE_SCHEMA, namedRecipe(base, origin), changes, origin));
}

/** Settings with the short forms of a recipe written out. */
export function expandRecipe(settings: unknown, origin: string): unknown {
  if (!isRecord(settings)) return settings;
  const { precision, ...others } = settings;
  const recipe = Object.hasOwn(settings, "precision") ? precision : others["recipe"];
  if (typeof recipe !== "string" && !(isRecord(recipe) && Object.hasOwn(recipe, "base"))) {
    return settings;
  }
  return { ...others, recipe: recipeFrom(recipe, origin) };
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
