/** @file AdamW and sums of squares as row programs; operands and scalars as in the contract. */
import {
  COUNTER_KEY_SHIFT,
  COUNTER_MULTIPLIERS,
  COUNTER_SHIFTS,
} from "../../base/counter-random.ts";
import { stochasticBf16Bits } from "../../codegen/vector/math.ts";
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import { type Recorder, rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";
import { SPAN_COLUMNS } from "./contract.ts";

const HYPER = [
  ...(["gradientScale", "firstRate", "beta2", "secondRate"] as const),
  ...(["stepLength", "epsilon", "decay"] as const),
] as const;
const ROUNDING = ["firstKey", "secondKey", "firstRow"] as const;

/** `variant` is the moments' dtype; "bf16.stochastic" has the scalars of `ROUNDING` as well. */
export function adamwProgram(variant: string): RowProgram {
  const isStochastic = variant === "bf16.stochastic";
  const moment = row(variant === "f32" ? "f32" : "bf16");
  return rowProgram({
    name: `adamw/${variant}`,
    operands: { parameter: row(), gradient: row(), firstMoment: moment, secondMoment: moment },
    scalars: [...HYPER, ...(isStochastic ? ROUNDING : [])],
    body(v, { parameter, gradient, firstMoment, secondMoment }, scalars) {
      const { gradientScale, firstRate, beta2, secondRate, stepLength, epsilon, decay } = scalars;
      const nextWord = isStochastic ? drawWords(v, scalars) : null;
      v.columns(() => {
        const g = v.mul(v.load(gradient), gradientScale);
        const before = v.load(firstMoment);
        const m = v.fma(v.sub(g, before), firstRate, before);
        const s = v.fma(v.mul(g, g), secondRate, v.mul(v.load(secondMoment), beta2));
        const step = v.div(v.mul(m, stepLength), v.add(v.sqrt(s), epsilon));
        v.store(parameter, v.sub(v.mul(v.load(parameter), decay), step));
        if (nextWord === null) {
          v.store(firstMoment, m);
          v.store(secondMoment, s);
          return;
        }
        const word = nextWord();
        v.storeBits(firstMoment, stochasticBf16Bits(v, m, v.and(word, v.integer(0xffff))));
        v.storeBits(secondMoment, stochasticBf16Bits(v, s, v.shiftRight(word, 16)));
      });
    },
  });
}

/** `counterWord` of base/counter-random.ts of each element of this row, in a column loop. */
function drawWords(
  v: Recorder,
  scalars: Readonly<Record<(typeof ROUNDING)[number], Value>>,
): () => Value {
  const key = (scalar: Value): Value => v.shiftLeft(v.roundToInteger(scalar), COUNTER_KEY_SHIFT);
  const [firstKey, secondKey] = [key(scalars.firstKey), key(scalars.secondKey)];
  const rowNumber = v.integerAdd(v.rowIndex(), v.roundToInteger(scalars.firstRow));
  const rowStart = v.integerMul(rowNumber, v.integer(SPAN_COLUMNS));
  const [before, between, after] = COUNTER_SHIFTS;
  const [a, b] = COUNTER_MULTIPLIERS;
  const folded = (x: Value, distance: number): Value => v.xor(x, v.shiftRight(x, distance));
  return () => {
    const keyed = v.xor(v.integerAdd(rowStart, v.columnIndex()), firstKey);
    const once = v.integerMul(folded(keyed, before), v.integer(a));
    const rekeyed = v.integerAdd(folded(once, between), secondKey);
    return folded(v.integerMul(rekeyed, v.integer(b)), after);
  };
}

export function sumSquaresProgram(variant: string): RowProgram {
  return rowProgram({
    name: `sumSquares/${variant}`,
    operands: { x: row(), out: perRow() },
    scalars: [],
    body(v, { x, out }) {
      const { squares } = v.columns(() => {
        const value = v.load(x);
        return { squares: v.sumOfProducts(value, value) };
      });
      v.storePerRow(out, squares);
    },
  });
}
