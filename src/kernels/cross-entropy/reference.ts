/** @file Cross entropy and its gradient, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar, sumColumns } from "../reference-rows.ts";

export function createReferenceCrossEntropy(variant: string, context: ThreadContext): KernelBody {
  const [dtype, mode] = variant.split(".") as [FloatType, "grad" | "loss"];
  return referenceRows(context, [dtype, "i32", dtype, dtype], (operands, at) => {
    const [logits, targets, loss, logSumExps] = operands;
    const { row, columns } = at;
    const gradScale = scalar(at, 0);
    const zLoss = scalar(at, 1);
    const target = targets!.get(row, 0);
    let top = -Infinity;
    for (let column = 0; column < columns; column++) top = Math.max(top, logits!.get(row, column));
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
      logits!.set(row, column, ignored ? 0 : gradScale * gradient);
    }
  });
}
