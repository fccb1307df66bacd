/**
 * @file Row softmax over the first `limit` columns, and its gradient.
 *
 *     out[r,c] = exp(scale·x[r,c] − m_r) / Σ_{c' < limit_r} exp(scale·x[r,c'] − m_r)
 *                                                                  c < limit_r, else exactly 0
 *     dX = scale · p ⊙ (dP − Σ_c p·dP)   in place of dP
 *
 *   limits_R   i32, 0..C; a limit of 0 gives a row of zeros
 *
 * `out` may be `x` (the same place and row stride); else no two operands overlap. A NaN among a
 * row's first `limit` columns makes those columns of the row NaN; what stands beyond them, NaN or
 * not, is not looked at. A matrix product over `out` does multiply its zeros: a value that is not
 * finite at a column then makes every row of the product NaN, also those whose limit excludes the
 * column. `causalAttention` takes care of that; other callers have to.
 */
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix, assertPerRow } from "../door.ts";
import { launchRows, matrix, perRow } from "../launch-rows.ts";

export const SOFTMAX_VARIANTS = ["f32", "f64"] as const;

export interface SoftmaxCausalCall {
  readonly x: Tensor<FloatType>;
  readonly limits: Tensor<"i32">;
  readonly scale: number;
  readonly out: Tensor<FloatType>;
}

export function softmaxCausal(device: Device, { x, limits, scale, out }: SoftmaxCausalCall): void {
  const { rows, columns, dtype } = x;
  assertMatrix(device, "softmaxCausal x", x, ["f32", "f64"], rows, columns);
  assertMatrix(device, "softmaxCausal out", out, [dtype], rows, columns);
  assertPerRow(device, "softmaxCausal limits", limits, ["i32"], rows);
  assertIndexes("softmaxCausal limits", limits, 0, columns + 1);
  launchRows(device, `softmaxCausal/${dtype}`, {
    rows,
    columns,
    operands: [matrix(x), perRow(limits), matrix(out)],
    scalars: [scale],
  });
}

export interface SoftmaxBackwardCall {
  readonly p: Tensor<FloatType>;
  readonly dP: Tensor<FloatType>;
  readonly scale: number;
}

export function softmaxBackward(device: Device, { p, dP, scale }: SoftmaxBackwardCall): void {
  const { rows, columns, dtype } = p;
  assertMatrix(device, "softmaxBackward p", p, ["f32", "f64"], rows, columns);
  assertMatrix(device, "softmaxBackward dP", dP, [dtype], rows, columns);
  launchRows(device, `softmaxBackward/${dtype}`, {
    rows,
    columns,
    operands: [matrix(p), matrix(dP)],
    scalars: [scale],
  });
}
