/** @file Cross entropy and its gradient, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar, sumColumns } from "../reference-rows.ts";

export function createReferenceCrossEntropy(variant: string, context: ThreadContext): KernelBody {
  const [dtype, mode] = variant.split(".") as [FloatType, "grad" | "bf16Grad" | "loss"];
  const rounded = mode === "bf16Grad" ? (["bf16"] as const) : [];
  return referenceRows(context, [dtype, "i32", dtype, dtype, ...rounded], (operands, at) => {
    const [logits, targets, loss, logSumExps, gradients = logits] = operands;
    const { row, columns } = at;
    const gradScale = scalar(at, 0);
    const zLoss = scalar(at, 1);
    const target = targets!.get(row, 0);
    // NaN is no largest value, but makes the sum NaN.
    let top = -Infinity;
    for (let column = 0; column < columns; column++) {
      const logit = logits!.get(row, column);
      if (logit > top) top = logit;
    }
    const total = sumColumns(columns, (column) => Math.exp(logits!.get(row, column) - top));
    const logSumExp = top + Math.log(total);
    const ignored = target < 0;
    const penalty = zLoss * logSumExp ** 2;
    logSumExps!.set(row, 0, logSumExp);
    loss!.set(row, 0, ignored ? 0 : logSumExp - logits!.get(row, target) + penalty);
    if (mode === "loss") return;
    for (let column = 0; column < columns; column++) {
      const p = Math.exp(logits!.get(row, column) - logSumExp);
      const gradient = p + 2 * zLoss * logSumExp * p - (column === target ? 1 : 0);
      if (mode === "bf16Grad") {
        logits!.set(row, column, Math.exp(logits!.get(row, column) - top));
      }
      gradients!.set(row, column, ignored ? 0 : gradScale * gradient);
    }
  });
}
