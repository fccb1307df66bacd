/**
 * @file The row programs between the products of attention with bf16 operands: weights from scores,
 * and the gradients of scores from those of weights.
 *
 *     weight_j = bf16(2^(x_j·scale − max))  j < limit, else 0      inverse = 1 ÷ Σ 2^(…), unrounded
 *
 * Weights are not divided by their sum; products over them are multiplied by `inverse` instead.
 */
import { exp2OfNonPositive } from "../../codegen/vector/math.ts";
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import { type Recorder, rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";

/**
 * 2^f for |f| ≤ ½ within 2.9e-6 of itself (least squares under Lawson's weights). Exactly 1 at 0: a
 * row's largest weight is 1, and where it is the only one its gradient cancels to nothing.
 */
export const FRACTION_POLYNOMIAL = [0.009582853, 0.055906425, 0.24024099, 0.6931242, 1] as const;

/**
 * The bf16 next to `a`, ties away from zero. NaN stays NaN: all that comes here is the processor's
 * own or was made from bf16 operands, and has room in its lower half.
 */
function nearestBits(v: Recorder, a: Value): Value {
  return v.shiftRight(v.integerAdd(a, v.integer(0x8000)), 16);
}

/** `scale` is that of the scores times log₂ e. */
export function attentionWeightsProgram(): RowProgram {
  return rowProgram({
    name: "attentionWeights",
    operands: { scores: row(), limits: perRow("i32"), weights: row("bf16"), inverse: perRow() },
    scalars: ["scale"],
    body(v, { scores, limits, weights, inverse }, { scale }) {
      const scaled = (): Value => v.mul(v.load(scores), scale);
      const { top } = v.columns(() => ({ top: v.rowMax(scaled()) }), { end: limits });
      const { total } = v.columns(
        () => {
          // Not fused: the product is the one that gave the maximum, so no exponent is above 0.
          const exponent = v.sub(scaled(), top);
          const weight = exp2OfNonPositive(v, exponent, FRACTION_POLYNOMIAL);
          v.storeBits(weights, nearestBits(v, weight));
          return { total: v.sum(weight) };
        },
        { end: limits },
      );
      v.storePerRow(inverse, v.div(v.float(1), total));
      v.columns(() => v.storeBits(weights, v.integer(0)), { start: limits });
    },
  });
}

/**
 * Score gradients in place of weights: weight · (g − inverse·Σ weight·g) · scale, where g is the
 * gradient of the weights times `inverse`.
 */
export function scoreGradientsProgram(): RowProgram {
  return rowProgram({
    name: "scoreGradients",
    operands: { weights: row("bf16"), gradients: row(), inverse: perRow() },
    scalars: ["scale"],
    body(v, { weights, gradients, inverse }, { scale }) {
      const { sum } = v.columns(() => ({
        sum: v.sumOfProducts(v.load(weights), v.load(gradients)),
      }));
      const mean = v.mul(sum, v.loadPerRow(inverse));
      v.columns(() => {
        const centred = v.sub(v.load(gradients), mean);
        v.storeBits(weights, nearestBits(v, v.mul(v.mul(v.load(weights), centred), scale)));
      });
    },
  });
}

/** out = x · factor, row by row; in f32 (out may be x) or bf16. */
export function scaleRowsProgram(variant: "f32" | "bf16"): RowProgram {
  return rowProgram({
    name: `scaleRows/${variant}`,
    operands: { x: row(), factor: perRow(), out: row(variant) },
    scalars: [],
    body(v, { x, factor, out }) {
      const scale = v.loadPerRow(factor);
      v.columns(() => v.store(out, v.mul(v.load(x), scale)));
    },
  });
}
