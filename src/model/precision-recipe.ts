/**
 * @file A precision recipe: for every class of tensor of every layer its format, its tiles, its
 * scales, and whether it is kept, cached, recomputed or passing. The model executes it.
 *
 *     kept        lives with the parameters
 *     cached      lives until the step ends, for the backward pass
 *     recomputed  computed again in the backward pass
 *     passing     lives during one product
 *
 * Two kinds of recipe exist. In a plain one, operands of products are rounded to one dtype and
 * nothing has scales (`plainRecipe`). In a scaled one, the three products of every linear layer and
 * expert read FP8; head, gate and the MTP modules' projections stay plain. What is f32 in every
 * recipe is no class here: master weights, gradients, the residual stream, norms, softmax, gate
 * scores. The recipes by name are in training/recipe.
 */
import { OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import { type Accumulation, PRODUCT_FORMATS } from "../kernels/scaled-matmul/contract.ts";
import { ACCUMULATION_STEP } from "../numerics/accumulate.ts";
import { SCALE_BLOCK } from "../numerics/scales.ts";
import { SCALED_FORMATS, type ScaledFormat } from "../tensor/scaled-tensor.ts";

export type PlainFormat = "f64" | "f32" | "bf16";
export type StorageFormat = PlainFormat | ScaledFormat;

/** Rows × columns of a tile; "row" and "column" are as long as the matrix. */
export const TILE_NAMES = ["none", "1x128", "128x1", "128x128", "row", "column", "tensor"] as const;
export type TileName = (typeof TILE_NAMES)[number];

export const SCALE_KINDS = ["none", "f32", "powerOfTwo"] as const;
export type ScaleKind = (typeof SCALE_KINDS)[number];

export const LIFETIMES = ["kept", "cached", "recomputed", "passing"] as const;
export type Lifetime = (typeof LIFETIMES)[number];

/** How one class of tensors is stored. */
export interface TensorRule {
  readonly format: StorageFormat;
  readonly tile: TileName;
  readonly scales: ScaleKind;
  readonly held: Lifetime;
}

export interface RecipeTensors {
  /** Weights of linear layers and experts, as products read them. */
  readonly weight: TensorRule;
  /** Inputs of attention and of dense feed-forward networks, behind their norms. */
  readonly linearInput: TensorRule;
  /** Inputs of the MLA up-projections, behind their norms. */
  readonly innerInput: TensorRule;
  /** Queries, keys and values: what the MLA up-projections give to attention. */
  readonly attentionInput: TensorRule;
  /** Input of the output projection, as the backward pass reads it. */
  readonly attentionOutput: TensorRule;
  /** Input of the experts, routed and shared: crosses ranks. */
  readonly dispatch: TensorRule;
  /** [gate | up] of experts and dense networks. */
  readonly swigluInput: TensorRule;
  /** Input of the down projections. */
  readonly swigluOutput: TensorRule;
  /** Gradients of outputs of linear layers, for the input's gradient. */
  readonly outputGradient: TensorRule;
  /** The same of the experts' down projections: crosses ranks. */
  readonly dispatchGradient: TensorRule;
  /** Inputs as weight gradients read them, contracting over tokens. */
  readonly wgradInput: TensorRule;
  /** Gradients of outputs as weight gradients read them. */
  readonly wgradGradient: TensorRule;
  /** Results of experts between ranks, forward and backward; on one rank they are not rounded. */
  readonly combine: TensorRule;
  /** The optimizer's moments. */
  readonly moment: TensorRule;
}

export type TensorClass = keyof RecipeTensors;

export interface PrecisionRecipe {
  readonly name: string;
  readonly tensors: RecipeTensors;
  /** Products of FP8 operands summed before promotion: a multiple of 32; null for never. */
  readonly promotionInterval: number | null;
  readonly accumulation: Accumulation;
  /** Moments in bf16: round up or down at random, in proportion, instead of to the nearest. */
  readonly stochasticRounding: boolean;
  /**
   * For experiments: beside every quantised input of a product stands one more token, this many
   * times its largest value, that takes part in the scale and in nothing else. Tiles of single
   * tokens do not see it; one scale a tensor does. 0 for none.
   */
  readonly outlierFactor: number;
}

/** Whether the products of linear layers and experts read FP8. */
export function isScaledRecipe({ tensors }: PrecisionRecipe): boolean {
  return isScaledFormat(tensors.weight.format);
}

export function isScaledFormat(format: StorageFormat): format is ScaledFormat {
  return (SCALED_FORMATS as readonly string[]).includes(format);
}

/**
 * The recipe that rounds operands of products to one dtype and caches the rest in the float type.
 */
export function plainRecipe(operand: PlainFormat): PrecisionRecipe {
  const float = operand === "bf16" ? "f32" : operand;
  const rule = (format: PlainFormat, held: Lifetime): TensorRule => ({
    format,
    tile: "none",
    scales: "none",
    held,
  });
  return {
    name: operand,
    tensors: {
      weight: rule(operand, "kept"),
      linearInput: rule(operand, "recomputed"),
      innerInput: rule(operand, "recomputed"),
      attentionInput: rule(float, "cached"),
      attentionOutput: rule(operand, "cached"),
      dispatch: rule(operand, "recomputed"),
      swigluInput: rule(float, "cached"),
      swigluOutput: rule(operand, "recomputed"),
      outputGradient: rule(operand, "passing"),
      dispatchGradient: rule(operand, "passing"),
      wgradInput: rule(operand, "passing"),
      wgradGradient: rule(operand, "passing"),
      combine: rule(float, "passing"),
      moment: rule(float, "kept"),
    },
    promotionInterval: SCALE_BLOCK,
    accumulation: "f32",
    stochasticRounding: false,
    outlierFactor: 0,
  };
}

/** What a class may be in a scaled recipe. */
interface Allowed {
  readonly formats: readonly StorageFormat[];
  readonly tiles: readonly TileName[];
  readonly held: readonly Lifetime[];
}

const FP8 = PRODUCT_FORMATS;
const ALONG_CHANNELS = ["1x128", "128x128", "row", "tensor"] as const;
const ALONG_TOKENS = ["128x1", "128x128", "column", "tensor"] as const;
const UNSCALED = ["none"] as const;

/**
 * Weights have no row tiles: the same codes serve two products, which contract over other sides.
 */
const ALLOWED: Readonly<Record<TensorClass, Allowed>> = {
  weight: { formats: FP8, tiles: ["128x128", "tensor"], held: ["kept"] },
  linearInput: { formats: FP8, tiles: ALONG_CHANNELS, held: ["cached", "recomputed"] },
  innerInput: { formats: FP8, tiles: ALONG_CHANNELS, held: ["recomputed"] },
  attentionInput: { formats: ["f32"], tiles: UNSCALED, held: ["cached", "recomputed"] },
  attentionOutput: {
    formats: ["e5m6", "e4m3", "e5m2", "bf16"],
    tiles: ["none", ...ALONG_CHANNELS],
    held: ["cached"],
  },
  dispatch: { formats: FP8, tiles: ALONG_CHANNELS, held: ["cached", "recomputed"] },
  swigluInput: {
    formats: ["e4m3", "e5m2", "e5m6", "f32"],
    tiles: ["none", ...ALONG_CHANNELS],
    held: ["cached"],
  },
  swigluOutput: { formats: FP8, tiles: ALONG_CHANNELS, held: ["recomputed"] },
  outputGradient: { formats: FP8, tiles: ALONG_CHANNELS, held: ["passing"] },
  dispatchGradient: { formats: FP8, tiles: ALONG_CHANNELS, held: ["passing"] },
  wgradInput: { formats: FP8, tiles: ALONG_TOKENS, held: ["passing"] },
  wgradGradient: { formats: FP8, tiles: ALONG_TOKENS, held: ["passing"] },
  combine: { formats: ["bf16", "f32"], tiles: UNSCALED, held: ["passing"] },
  moment: { formats: ["bf16", "f32"], tiles: UNSCALED, held: ["kept"] },
};

export const TENSOR_CLASSES: readonly TensorClass[] = Object.keys(ALLOWED) as TensorClass[];

/** Refuse a recipe that the model cannot execute. Returns it unchanged. */
export function validateRecipe(recipe: PrecisionRecipe): PrecisionRecipe {
  const { promotionInterval: interval, accumulation } = recipe;
  if (isScaledRecipe(recipe)) {
    for (const name of TENSOR_CLASSES) checkRule(recipe, name, ALLOWED[name]);
  } else {
    checkPlain(recipe);
  }
  const isInterval = isIntegerIn(interval, ACCUMULATION_STEP, 2 ** 20);
  if (interval !== null && !(isInterval && interval % ACCUMULATION_STEP === 0)) {
    refuse(recipe, `promotionInterval (${interval}) must be a multiple of 32, or null for never`);
  }
  if (interval !== null && interval < SCALE_BLOCK && SCALE_BLOCK % interval !== 0) {
    refuse(recipe, `promotionInterval (${interval}) must divide 128 where it is smaller`);
  }
  if (interval !== null && interval % Math.min(interval, SCALE_BLOCK) !== 0) {
    refuse(recipe, `promotionInterval (${interval}) must be a multiple of 128 where it is larger`);
  }
  const hasE5m2 = TENSOR_CLASSES.some((name) => recipe.tensors[name].format === "e5m2");
  if (accumulation === "tensorCore" && hasE5m2) {
    refuse(recipe, "the tensor core's accumulation is modelled for e4m3, not for e5m2");
  }
  return recipe;
}

function checkRule(recipe: PrecisionRecipe, name: TensorClass, allowed: Allowed): void {
  const { format, tile, scales, held } = recipe.tensors[name];
  const isScaled = isScaledFormat(format);
  const fields = [
    ["format", format, allowed.formats],
    ["tile", tile, allowed.tiles.filter((other) => (other !== "none") === isScaled)],
    ["scales", scales, isScaled ? ["f32", "powerOfTwo"] : ["none"]],
    ["held", held, allowed.held],
  ] as const;
  for (const [field, value, choices] of fields) {
    if ((choices as readonly string[]).includes(value)) continue;
    refuse(recipe, `tensors.${name}.${field} (${value}) must be ${choices.join(" or ")} there`);
  }
}

/** A plain recipe is one of three, apart from its moments. */
function checkPlain(recipe: PrecisionRecipe): void {
  const { format } = recipe.tensors.weight;
  const plain = plainRecipe(format as PlainFormat).tensors;
  for (const name of TENSOR_CLASSES) {
    if (name === "moment") {
      checkRule(recipe, name, { ...ALLOWED.moment, formats: ["bf16", plain.moment.format] });
    } else if (JSON.stringify(recipe.tensors[name]) !== JSON.stringify(plain[name])) {
      const remedy = `with weights in ${format} it must be ${JSON.stringify(plain[name])}`;
      refuse(recipe, `tensors.${name} is ${JSON.stringify(recipe.tensors[name])}; ${remedy}`);
    }
  }
}

function refuse({ name }: PrecisionRecipe, problem: string): never {
  throw new OperationalError("config.value", `recipe ${name}: ${problem}`, { recipe: name });
}
