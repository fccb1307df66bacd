/** @file Sums of matrices, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar } from "../reference-rows.ts";

export function createReferenceAccumulate(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType | "bf16";
  return referenceRows(context, [dtype, dtype === "f64" ? "f64" : "f32"], ([x, out], at) => {
    for (let column = 0; column < at.columns; column++) {
      const sum = out!.get(at.row, column) + x!.get(at.row, column) * scalar(at, 0);
      out!.set(at.row, column, sum);
    }
  });
}

export function createReferenceAddRows(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype, dtype], ([a, b, out], { row, columns }) => {
    for (let column = 0; column < columns; column++) {
      out!.set(row, column, a!.get(row, column) + b!.get(row, column));
    }
  });
}

export function createReferenceLerp(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, dtype], ([x, out], at) => {
    for (let column = 0; column < at.columns; column++) {
      const before = out!.get(at.row, column);
      out!.set(at.row, column, before + (x!.get(at.row, column) - before) * scalar(at, 0));
    }
  });
}

export function createReferenceSumSlices(variant: string, context: ThreadContext): KernelBody {
  const [dtype, count] = variant.split(".") as [FloatType, string];
  const dtypes = Array.from({ length: Number(count) + 1 }, () => dtype);
  return referenceRows(context, dtypes, (operands, { row, columns }) => {
    const out = operands[operands.length - 1]!;
    for (let column = 0; column < columns; column++) {
      const addends = operands.slice(0, -1).map((x) => x.get(row, column));
      out.set(
        row,
        column,
        addends.reduce((sum, value) => sum + value),
      );
    }
  });
}
