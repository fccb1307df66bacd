/** @file AdamW and sums of squares over rows of a flat span, plainly. */
import { counterWord } from "../../base/counter-random.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { fromBf16 } from "../../numerics/bf16.ts";
import type { DType, FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar, sumColumns } from "../reference-rows.ts";
import { SPAN_COLUMNS } from "./contract.ts";

const floatWord = new Float32Array(1);
const integerWord = new Uint32Array(floatWord.buffer);

/** `value` as the bf16 at or below it in magnitude, or the next, as 16 random bits decide. */
function roundStochastically(value: number, random: number): number {
  floatWord[0] = value;
  if (Number.isNaN(value)) return value;
  return fromBf16((integerWord[0]! + random) >>> 16);
}

export function createReferenceAdamw(variant: string, context: ThreadContext): KernelBody {
  const isStochastic = variant === "bf16.stochastic";
  const moments: DType = isStochastic ? "bf16" : (variant as FloatType | "bf16");
  const dtype: FloatType = moments === "bf16" ? "f32" : (moments as FloatType);
  return referenceRows(context, [dtype, dtype, moments, moments], (operands, at) => {
    const [parameter, gradient, firstMoment, secondMoment] = operands;
    const { row, columns } = at;
    const drawWord = (column: number): number => {
      const keys = { first: scalar(at, 7), second: scalar(at, 8) };
      return counterWord(keys, (scalar(at, 9) + row) * SPAN_COLUMNS + column);
    };
    const [gradientScale, firstRate, beta2, secondRate, stepLength, epsilon, decay] =
      at.scalars as unknown as [number, number, number, number, number, number, number];
    for (let column = 0; column < columns; column++) {
      const g = gradient!.get(row, column) * gradientScale;
      const before = firstMoment!.get(row, column);
      const m = before + (g - before) * firstRate;
      const v = secondMoment!.get(row, column) * beta2 + g * g * secondRate;
      const step = (stepLength * m) / (Math.sqrt(v) + epsilon);
      const word = isStochastic ? drawWord(column) : 0;
      const round = (value: number, random: number): number =>
        isStochastic ? roundStochastically(value, random) : value;
      firstMoment!.set(row, column, round(m, word & 0xffff));
      secondMoment!.set(row, column, round(v, word >>> 16));
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
