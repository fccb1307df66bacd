/**
 * @file Products of activations with a weight, plain, scaled or coded, of one matrix or of all
 * experts.
 *
 *     nt  out_TN (=|+=) x_TK · W_NKᵀ        Fprop
 *     nn  dX_TK (=|+=) dOut_TN · W_NK       Dgrad
 *
 * An operand that is still plain where the weight is scaled is quantised here: generation, which
 * caches nothing, relies on it.
 */
import { assert } from "../base/errors.ts";
import { codedMatmul } from "../kernels/coded-matmul/contract.ts";
import { groupedMatmul } from "../kernels/grouped-matmul/contract.ts";
import { groupedScaledMatmul } from "../kernels/grouped-scaled-matmul/contract.ts";
import { matmul } from "../kernels/matmul/contract.ts";
import { type SumRule, scaledMatmul } from "../kernels/scaled-matmul/contract.ts";
import type { CodedWeight } from "../tensor/coded-weight.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { isScaled, type Operand, quantize } from "./operand.ts";
import type { Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import type { PrecisionRecipe } from "./precision-recipe.ts";

export interface Product {
  readonly transposition: "nt" | "nn";
  readonly a: Operand;
  readonly weight: Parameter;
  readonly out: Tensor<FloatType>;
  readonly accumulate: boolean;
  /** First row of each expert, [1, G+1]; the weight is then stacked. */
  readonly offsets?: Tensor<"i32">;
}

export function multiply(pass: Pass, product: Product): void {
  const { transposition, a, weight, out, accumulate, offsets } = product;
  if (weight.coded !== null) {
    multiplyCoded(pass, product, weight.coded);
    return;
  }
  if (weight.scaled === null) {
    assert(!isScaled(a), `${weight.name} is not scaled, so neither is its operand`);
    const call = { transposition, a, b: weight.compute, out, accumulate };
    if (offsets === undefined) matmul(pass.device, call);
    else groupedMatmul(pass.device, { ...call, offsets });
    return;
  }
  assert(out.dtype === "f32", `products of scaled operands are f32, not ${out.dtype}`);
  using _mark = pass.scratch.mark();
  const { linearInput, outputGradient } = weight.recipe.tensors;
  const rule = transposition === "nt" ? linearInput : outputGradient;
  const call = {
    transposition,
    a: isScaled(a) ? a : quantize(pass, pass.scratch, a, { rule }),
    b: weight.scaled,
    out: out as Tensor<"f32">,
    accumulate,
    ...sumRule(weight.recipe),
  };
  if (offsets === undefined) scaledMatmul(pass.device, call);
  else groupedScaledMatmul(pass.device, { ...call, offsets });
}

function multiplyCoded(pass: Pass, product: Product, coded: CodedWeight): void {
  const { transposition, a, weight, out, accumulate, offsets } = product;
  assert(
    transposition === "nt" && !isScaled(a) && a.dtype === "bf16" && out.dtype === "f32",
    `${weight.name} is coded: it multiplies bf16 into f32, and has no gradient`,
  );
  const call = { a: a as Tensor<"bf16">, weight: coded, out: out as Tensor<"f32">, accumulate };
  codedMatmul(pass.device, offsets === undefined ? call : { ...call, offsets });
}

/** How products under a recipe are summed. */
export function sumRule({ promotionInterval, accumulation }: PrecisionRecipe): SumRule {
  return { promotionInterval: promotionInterval ?? Number.POSITIVE_INFINITY, accumulation };
}
