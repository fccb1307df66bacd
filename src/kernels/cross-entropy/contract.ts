/**
 * @file Cross entropy of rows of logits against one target each, and its gradient in place.
 *
 *     logSumExp_R = ln Σ_v exp(logits_RV)
 *     loss_R      = logSumExp − logits[target] + zLoss · logSumExp²
 *     logits_RV   ← gradScale · (p + 2·zLoss·logSumExp·p − onehot(target))      with `grad`
 *
 * With a tensor as `grad` the gradient goes there, rounded, and logits become e^(logits − their
 * largest). In nats. A target of −1 is ignored: loss 0, gradient 0. No two operands overlap.
 */
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix, assertPerRow } from "../door.ts";
import { launchRows, matrix, perRow } from "../launch-rows.ts";

export const CROSS_ENTROPY_VARIANTS = [
  "f32.grad",
  "f32.bf16Grad",
  "f32.loss",
  "f64.grad",
  "f64.loss",
] as const;

export interface CrossEntropyCall {
  readonly logits: Tensor<FloatType>;
  readonly targets: Tensor<"i32">;
  readonly gradScale: number;
  readonly zLoss: number;
  readonly loss: Tensor<FloatType>;
  readonly logSumExp: Tensor<FloatType>;
  /** Overwrite the logits by the gradient, or leave them; or where it goes, [R, V]. */
  readonly grad: boolean | Tensor<"bf16">;
}

export function crossEntropy(device: Device, call: CrossEntropyCall): void {
  const { logits, targets, gradScale, zLoss, loss, logSumExp, grad } = call;
  const { rows, columns, dtype } = logits;
  assertMatrix(device, "crossEntropy logits", logits, ["f32", "f64"], rows, columns);
  assertPerRow(device, "crossEntropy targets", targets, ["i32"], rows);
  assertPerRow(device, "crossEntropy loss", loss, [dtype], rows);
  assertPerRow(device, "crossEntropy logSumExp", logSumExp, [dtype], rows);
  assertIndexes("crossEntropy targets", targets, -1, columns);
  const rounded = typeof grad === "boolean" ? [] : [grad];
  for (const tensor of rounded) {
    assertMatrix(device, "crossEntropy grad", tensor, ["bf16"], rows, columns);
  }
  const mode = rounded.length > 0 ? "bf16Grad" : grad ? "grad" : "loss";
  launchRows(device, `crossEntropy/${dtype}.${mode}`, {
    rows,
    columns,
    operands: [
      ...[matrix(logits), perRow(targets), perRow(loss), perRow(logSumExp)],
      ...rounded.map(matrix),
    ],
    scalars: [gradScale, zLoss],
  });
}
