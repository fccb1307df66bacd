/** @file AdamW and sums of squares over rows of a flat span, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, sumColumns } from "../reference-rows.ts";

export function createReferenceAdamw(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype, dtype, dtype], (operands, at) => {
    const [parameter, gradient, firstMoment, secondMoment] = operands;
    const { row, columns } = at;
    const [gradientScale, firstRate, beta2, secondRate, stepLength, epsilon, decay] =
      at.scalars as unknown as [number, number, number, number, number, number, number];
    for (let column = 0; column < columns; column++) {
      const g = gradient!.get(row, column) * gradientScale;
      const before = firstMoment!.get(row, column);
      const m = before + (g - before) * firstRate;
      const v = secondMoment!.get(row, column) * beta2 + g * g * secondRate;
      const step = (stepLength * m) / (Math.sqrt(v) + epsilon);
      firstMoment!.set(row, column, m);
      secondMoment!.set(row, column, v);
      parameter!.set(row, column, parameter!.get(row, column) * decay - step);
    }
  });
}

export function createReferenceSumSquares(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype], ([x, out], { row, columns }) => {
    out!.set(
      row,
      0,
      sumColumns(columns, (column) => x!.get(row, column) ** 2),
    );
  });
}
