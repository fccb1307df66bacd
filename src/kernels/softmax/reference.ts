/** @file Row softmax over a limited number of columns and its gradient, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar, sumColumns } from "../reference-rows.ts";

export function createReferenceSoftmaxCausal(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, "i32", dtype], ([x, limits, out], at) => {
    const { row, columns } = at;
    const limit = limits!.get(row, 0);
    const scale = scalar(at, 0);
    const scores = Float64Array.from({ length: limit }, (_, column) => scale * x!.get(row, column));
    const top = scores.reduce((most, score) => Math.max(most, score), -Infinity);
    const total = sumColumns(limit, (column) => Math.exp(scores[column]! - top));
    for (let column = 0; column < columns; column++) {
      out!.set(row, column, column < limit ? Math.exp(scores[column]! - top) / total : 0);
    }
  });
}

export function createReferenceSoftmaxBackward(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype], ([p, dP], at) => {
    const { row, columns } = at;
    const mean = sumColumns(columns, (column) => p!.get(row, column) * dP!.get(row, column));
    for (let column = 0; column < columns; column++) {
      const gradient = p!.get(row, column) * (dP!.get(row, column) - mean);
      dP!.set(row, column, gradient * scalar(at, 0));
    }
  });
}
