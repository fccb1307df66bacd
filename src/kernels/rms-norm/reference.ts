/** @file Root-mean-square normalisation and its gradient, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { type ReferenceOperand, referenceRows, scalar, sumColumns } from "../reference-rows.ts";

/** 1 / root mean square of a row. */
function inverseRms(x: ReferenceOperand, row: number, columns: number, epsilon: number): number {
  const squares = sumColumns(columns, (column) => x.get(row, column) ** 2);
  return 1 / Math.sqrt(squares / columns + epsilon);
}

export function createReferenceRmsNorm(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant === "f64" ? "f64" : "f32";
  const outDType = variant as FloatType | "bf16";
  return referenceRows(context, [dtype, dtype, outDType], ([x, gain, out], at) => {
    const { row, columns } = at;
    const inverse = inverseRms(x!, row, columns, scalar(at, 0));
    for (let column = 0; column < columns; column++) {
      out!.set(row, column, x!.get(row, column) * inverse * gain!.get(0, column));
    }
  });
}

export function createReferenceRmsNormBackward(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const [dtype, mode] = variant.split(".") as [FloatType, string | undefined];
  const dtypes = [dtype, dtype, dtype, dtype, dtype];
  return referenceRows(context, dtypes, ([x, gain, dOut, dX, dGain], at) => {
    const { row, task, isFirst, columns } = at;
    const inverse = inverseRms(x!, row, columns, scalar(at, 0));
    const unit = (column: number): number => x!.get(row, column) * inverse;
    const scaled = (column: number): number => dOut!.get(row, column) * gain!.get(0, column);
    const mean = sumColumns(columns, (column) => scaled(column) * unit(column)) / columns;
    for (let column = 0; column < columns; column++) {
      const before = mode === "accumulate" ? dX!.get(row, column) : 0;
      const gainGradient = dOut!.get(row, column) * unit(column);
      dX!.set(row, column, before + inverse * (scaled(column) - unit(column) * mean));
      const gainBefore = isFirst ? 0 : dGain!.get(task, column);
      dGain!.set(task, column, gainBefore + gainGradient);
    }
  });
}

export function createReferenceSumPartials(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype], ([partials, out], { row, columns }) => {
    for (let column = 0; column < columns; column++) {
      out!.set(0, column, out!.get(0, column) + partials!.get(row, column));
    }
  });
}
