/**
 * @file The gated activation of every feed-forward network, forward and backward.
 *
 *     out_TI = weight_T · silu(gate_TI) · up_TI          silu(z) = z / (1 + e^(−z))
 *
 *   gateUp_T2I  gate columns first, then up: the output of one fused product
 *   weight_T    optional: an expert row's routing weight, applied here so that the expert's output
 *               need not be kept
 *   dWeight_T = Σ_i dOut_TI · silu(gate) · up            written with `weight` only
 *
 * Backward recomputes the activation from gateUp, and writes it: the weight gradient of the product
 * behind needs it (it may differ from forward's in the last bit). Outputs are overwritten; bf16
 * outputs feed matrix products. An output overlaps neither an input nor another output.
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { sliceColumns, type Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertPerRow } from "../door.ts";
import { launchRows, matrix, perRow } from "../launch-rows.ts";

/** Named by the dtype of `out` (forward) or of `dGateUp` and `activation` (backward). */
export const SWIGLU_VARIANTS = [
  "f32",
  "bf16",
  "f64",
  "f32.weighted",
  "bf16.weighted",
  "f64.weighted",
] as const;

export interface SwigluCall {
  readonly gateUp: Tensor<FloatType>;
  readonly weight?: Tensor<FloatType>;
  readonly out: Tensor<FloatType | "bf16">;
}

export function swiglu(device: Device, { gateUp, weight, out }: SwigluCall): void {
  const { rows, dtype } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  const narrow = dtype === "f32" ? (["f32", "bf16"] as const) : (["f64"] as const);
  assertMatrix(device, "swiglu gateUp", gateUp, ["f32", "f64"], rows, 2 * columns);
  assertMatrix(device, "swiglu out", out, narrow, rows, columns);
  if (weight !== undefined) assertPerRow(device, "swiglu weight", weight, [dtype], rows);
  launchRows(device, `swiglu/${out.dtype}${weight === undefined ? "" : ".weighted"}`, {
    rows,
    columns,
    operands: [
      matrix(sliceColumns(gateUp, 0, columns)),
      matrix(sliceColumns(gateUp, columns, 2 * columns)),
      ...(weight === undefined ? [] : [perRow(weight)]),
      matrix(out),
    ],
  });
}

export interface SwigluBackwardCall {
  readonly gateUp: Tensor<FloatType>;
  readonly weight?: Tensor<FloatType>;
  readonly dOut: Tensor<FloatType>;
  readonly dGateUp: Tensor<FloatType | "bf16">;
  /** What forward gives as `out`; in the dtype of dGateUp. */
  readonly activation: Tensor<FloatType | "bf16">;
  readonly dWeight?: Tensor<FloatType>;
}

export function swigluBackward(device: Device, call: SwigluBackwardCall): void {
  const { gateUp, weight, dOut, dGateUp, activation, dWeight } = call;
  const { rows, dtype } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  const narrow = dtype === "f32" ? (["f32", "bf16"] as const) : (["f64"] as const);
  assert(
    (weight === undefined) === (dWeight === undefined),
    "swigluBackward: weight and dWeight come together",
  );
  assertMatrix(device, "swigluBackward gateUp", gateUp, ["f32", "f64"], rows, 2 * columns);
  assertMatrix(device, "swigluBackward dOut", dOut, [dtype], rows, columns);
  assertMatrix(device, "swigluBackward dGateUp", dGateUp, narrow, rows, 2 * columns);
  assertMatrix(device, "swigluBackward activation", activation, [dGateUp.dtype], rows, columns);
  const weights = weight === undefined || dWeight === undefined ? [] : [weight, dWeight];
  for (const tensor of weights) {
    assertPerRow(device, "swigluBackward weight", tensor, [dtype], rows);
  }
  launchRows(device, `swigluBackward/${dGateUp.dtype}${weights.length > 0 ? ".weighted" : ""}`, {
    rows,
    columns,
    operands: [
      matrix(sliceColumns(gateUp, 0, columns)),
      matrix(sliceColumns(gateUp, columns, 2 * columns)),
      ...weights.map(perRow),
      matrix(dOut),
      matrix(sliceColumns(dGateUp, 0, columns)),
      matrix(sliceColumns(dGateUp, columns, 2 * columns)),
      matrix(activation),
    ],
  });
}
