/**
 * @file Root-mean-square normalisation, forward and backward.
 *
 *     r_t = (mean_d x_TD² + epsilon)^(−1/2)
 *     out_TD = x · r · gain_D
 *     dX_TD (=|+=) r · (g − x̂ · mean_d(g · x̂))      g = dOut · gain,  x̂ = x · r
 *     dGain_D += Σ_t dOut · x̂
 *
 *   x f32 (f64 in gradient checks); out the same, or bf16 for the matrix product that follows
 *
 * Backward recomputes r: nothing but x is kept. dGain is summed within tasks of 64 rows, then over
 * the tasks in order, so that the number of threads changes no bit. Outputs overlap neither
 * inputs nor each other. Source: DeepSeek-V3 report (fact sheet §1.2 of the configuration).
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix } from "../door.ts";
import { launchRows, matrix, vector } from "../launch-rows.ts";

export const RMS_NORM_VARIANTS = ["f32", "bf16", "f64"] as const;
export const RMS_NORM_BACKWARD_VARIANTS = [
  "f32",
  "f32.accumulate",
  "f64",
  "f64.accumulate",
] as const;
export const SUM_PARTIALS_VARIANTS = ["f32", "f64"] as const;

/** Rows whose gain gradients are summed together first; part of the result's definition. */
export const GAIN_ROWS_PER_TASK = 64;

export interface RmsNormCall {
  readonly x: Tensor<FloatType>;
  /** [1, D] */
  readonly gain: Tensor<FloatType>;
  readonly epsilon: number;
  readonly out: Tensor<FloatType | "bf16">;
}

export function rmsNorm(device: Device, { x, gain, epsilon, out }: RmsNormCall): void {
  const { rows, columns, dtype } = x;
  assertMatrix(device, "rmsNorm x", x, ["f32", "f64"], rows, columns);
  assertMatrix(device, "rmsNorm gain", gain, [dtype], 1, columns);
  const outDtypes = dtype === "f32" ? (["f32", "bf16"] as const) : (["f64"] as const);
  assertMatrix(device, "rmsNorm out", out, outDtypes, rows, columns);
  launchRows(device, `rmsNorm/${out.dtype}`, {
    rows,
    columns,
    operands: [matrix(x), vector(gain), matrix(out)],
    scalars: [epsilon, 1 / columns],
  });
}

export interface RmsNormBackwardCall {
  readonly x: Tensor<FloatType>;
  readonly gain: Tensor<FloatType>;
  readonly epsilon: number;
  readonly dOut: Tensor<FloatType>;
  readonly dX: Tensor<FloatType>;
  /** Add to dX instead of overwriting it. */
  readonly accumulate: boolean;
  /** [1, D]; always added to. */
  readonly dGain: Tensor<FloatType>;
  /** For the partial sums; released before return. */
  readonly arena: Arena;
}

export function rmsNormBackward(device: Device, call: RmsNormBackwardCall): void {
  const { x, gain, epsilon, dOut, dX, dGain } = call;
  const { rows, columns, dtype } = x;
  assertMatrix(device, "rmsNormBackward x", x, ["f32", "f64"], rows, columns);
  assertMatrix(device, "rmsNormBackward gain", gain, [dtype], 1, columns);
  assertMatrix(device, "rmsNormBackward dOut", dOut, [dtype], rows, columns);
  assertMatrix(device, "rmsNormBackward dX", dX, [dtype], rows, columns);
  if (rows === 0) return;
  using _mark = call.arena.mark();
  const partials = call.arena.allocate(dtype, [ceilDiv(rows, GAIN_ROWS_PER_TASK), columns]);
  launchRows(device, `rmsNormBackward/${dtype}${call.accumulate ? ".accumulate" : ""}`, {
    rows,
    columns,
    rowsPerTask: GAIN_ROWS_PER_TASK,
    operands: [matrix(x), vector(gain), matrix(dOut), matrix(dX), matrix(partials)],
    scalars: [epsilon, 1 / columns],
  });
  sumPartials(device, { partials, out: dGain });
}

export interface SumPartialsCall {
  readonly partials: Tensor<FloatType>;
  /** [1, D]; added to. */
  readonly out: Tensor<FloatType>;
}

/** out += Σ rows of `partials`, in order. */
export function sumPartials(device: Device, { partials, out }: SumPartialsCall): void {
  const { rows, columns, dtype } = partials;
  assertMatrix(device, "sumPartials partials", partials, ["f32", "f64"], rows, columns);
  assertMatrix(device, "sumPartials out", out, [dtype], 1, columns);
  assert(rows > 0, "sumPartials: at least one row");
  launchRows(device, `sumPartials/${dtype}`, {
    rows,
    columns,
    rowsPerTask: rows,
    operands: [matrix(partials), vector(out)],
  });
}
