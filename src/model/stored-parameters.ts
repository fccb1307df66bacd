/**
 * @file Parameters of a model that is only to infer: each is kept once, as products read it, and
 * nothing is kept beside it.
 *
 *     matrices, gate, embedding, head    bf16
 *     norm gains                         f32
 *
 * A checkpoint fills them row by row (`fillRows`), so that no more than one of its tensors is ever
 * held in f32. Gradients and master values are asserted to be absent.
 */
import { assert, unreachable } from "../base/errors.ts";
import { encodeBf16 } from "../numerics/bf16.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { declareParameters, type ParameterDeclaration } from "./parameter-declarations.ts";
import type { Parameter } from "./parameters.ts";
import type { PrecisionRecipe } from "./precision-recipe.ts";
import type { WeightFormat } from "./weight-format.ts";

/** Zeros for every parameter, allocated from `arena`, in the order of the forward pass. */
export function storeParameters(
  arena: Arena,
  config: ModelConfig,
  { recipe }: { readonly recipe: PrecisionRecipe; readonly weights: WeightFormat },
): readonly Parameter[] {
  return declareParameters(config).map((declaration) => {
    const numExperts = declaration.role === "experts" ? config.numRoutedExperts : 1;
    return store(arena, declaration, { recipe, numExperts });
  });
}

function store(
  arena: Arena,
  { name, shape, role }: ParameterDeclaration,
  { recipe, numExperts }: Pick<Parameter, "recipe" | "numExperts">,
): Parameter {
  const isNorm = role === "norm";
  const kept = arena.allocateZeros(isNorm ? "f32" : "bf16", shape);
  return {
    name,
    shape,
    role,
    numExperts,
    decays: !isNorm,
    get value(): Tensor<"f32"> {
      if (!isNorm) unreachable(`${name} has no master values: the model was made to infer`);
      return kept as Tensor<"f32">;
    },
    get gradient(): Tensor<"f32"> {
      return unreachable(`${name} has no gradient: the model was made to infer`);
    },
    compute: kept,
    scaled: null,
    kept,
    recipe,
  };
}

/** Bytes of all parameters as they are kept, padding not counted. */
export function storedBytes(config: ModelConfig): number {
  return declareParameters(config).reduce((sum, { role, shape }) => {
    return sum + shape[0] * shape[1] * DTYPE_BYTES[role === "norm" ? "f32" : "bf16"];
  }, 0);
}

/** Set whole rows of a parameter, from `rowStart` on, to these values. */
export function fillRows(parameter: Parameter, rowStart: number, values: Float32Array): void {
  const { kept, shape, name } = parameter;
  const rows = values.length / shape[1];
  assert(Number.isInteger(rows), `${name} takes whole rows of ${shape[1]}, not ${values.length}`);
  const target = sliceRows(kept, rowStart, rowStart + rows);
  if (target.dtype === "bf16") encodeBf16(values, view(target as Tensor<"bf16">));
  else view(target as Tensor<"f32">).set(values);
}
