/**
 * @file Sums of matrices.
 *
 *     accumulate: out_RC += x_RC · scale        x f32 or bf16 (f64 with f64)
 *     addRows:    out_RC  = a_RC + b_RC
 *     lerp:       out_RC += (x_RC − out_RC) · weight
 *     sumSlices:  out_RC  = Σ_k x_R,kC+C         k = 0 … K − 1, added in order
 *
 * An input of the output's dtype may be the output itself (the same place and row stride); else
 * they do not overlap.
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { sliceColumns, type Tensor } from "../../tensor/tensor.ts";
import { assertMatrix } from "../door.ts";
import { launchRows, matrix } from "../launch-rows.ts";

/** Named by the dtype of x. */
export const ACCUMULATE_VARIANTS = ["f32", "bf16", "f64"] as const;
export const ADD_ROWS_VARIANTS = ["f32", "f64"] as const;
export const LERP_VARIANTS = ["f32", "f64"] as const;
/** Addends of one launch. */
export const SUM_SLICES_MOST = 8;
/** "f32.8": of eight addends. */
export const SUM_SLICES_VARIANTS: readonly string[] = ["f32", "f64"].flatMap((dtype) =>
  Array.from({ length: SUM_SLICES_MOST }, (_, index) => `${dtype}.${index + 1}`),
);

export interface AccumulateCall {
  readonly x: Tensor<FloatType | "bf16">;
  readonly scale: number;
  readonly out: Tensor<FloatType>;
}

export function accumulate(device: Device, { x, scale, out }: AccumulateCall): void {
  const { rows, columns, dtype } = out;
  const dtypes = dtype === "f32" ? (["f32", "bf16"] as const) : (["f64"] as const);
  assertMatrix(device, "accumulate x", x, dtypes, rows, columns);
  assertMatrix(device, "accumulate out", out, ["f32", "f64"], rows, columns);
  launchRows(device, `accumulate/${x.dtype}`, {
    rows,
    columns,
    operands: [matrix(x), matrix(out)],
    scalars: [scale],
  });
}

export interface AddRowsCall {
  readonly a: Tensor<FloatType>;
  readonly b: Tensor<FloatType>;
  readonly out: Tensor<FloatType>;
}

export function addRows(device: Device, { a, b, out }: AddRowsCall): void {
  const { rows, columns, dtype } = out;
  assertMatrix(device, "addRows a", a, [dtype], rows, columns);
  assertMatrix(device, "addRows b", b, [dtype], rows, columns);
  assertMatrix(device, "addRows out", out, ["f32", "f64"], rows, columns);
  const operands = [matrix(a), matrix(b), matrix(out)];
  launchRows(device, `addRows/${dtype}`, { rows, columns, operands });
}

export interface LerpCall {
  readonly x: Tensor<FloatType>;
  readonly weight: number;
  readonly out: Tensor<FloatType>;
}

export function lerp(device: Device, { x, weight, out }: LerpCall): void {
  const { rows, columns, dtype } = out;
  assertMatrix(device, "lerp x", x, [dtype], rows, columns);
  assertMatrix(device, "lerp out", out, ["f32", "f64"], rows, columns);
  launchRows(device, `lerp/${dtype}`, {
    rows,
    columns,
    operands: [matrix(x), matrix(out)],
    scalars: [weight],
  });
}

export interface SumSlicesCall {
  /** [R, K·C] */
  readonly x: Tensor<FloatType>;
  readonly out: Tensor<FloatType>;
}

export function sumSlices(device: Device, { x, out }: SumSlicesCall): void {
  const { rows, columns, dtype } = out;
  const count = divExact(x.columns, columns);
  assert(count > 0, "sumSlices: at least one slice");
  assertMatrix(device, "sumSlices x", x, [dtype], rows, x.columns);
  assertMatrix(device, "sumSlices out", out, ["f32", "f64"], rows, columns);
  const slices = Array.from({ length: count }, (_, slice) =>
    sliceColumns(x, slice * columns, (slice + 1) * columns),
  );
  // What does not fit one launch is added to what the ones before have made.
  let sum: readonly Tensor[] = [];
  while (slices.length > 0) {
    const addends = [...sum, ...slices.splice(0, SUM_SLICES_MOST - sum.length)];
    const operands = [...addends, out].map(matrix);
    launchRows(device, `sumSlices/${dtype}.${addends.length}`, { rows, columns, operands });
    sum = [out];
  }
}
