/** @file AdamW and sums of squares as row programs; operands and scalars as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";

export function adamwProgram(variant: string): RowProgram {
  return rowProgram({
    name: `adamw/${variant}`,
    operands: { parameter: row(), gradient: row(), firstMoment: row(), secondMoment: row() },
    scalars: [
      ...(["gradientScale", "firstRate", "beta2", "secondRate"] as const),
      ...(["stepLength", "epsilon", "decay"] as const),
    ],
    body(v, { parameter, gradient, firstMoment, secondMoment }, scalars) {
      const { gradientScale, firstRate, beta2, secondRate, stepLength, epsilon, decay } = scalars;
      v.columns(() => {
        const g = v.mul(v.load(gradient), gradientScale);
        const before = v.load(firstMoment);
        const m = v.fma(v.sub(g, before), firstRate, before);
        const s = v.fma(v.mul(g, g), secondRate, v.mul(v.load(secondMoment), beta2));
        v.store(firstMoment, m);
        v.store(secondMoment, s);
        const step = v.div(v.mul(m, stepLength), v.add(v.sqrt(s), epsilon));
        v.store(parameter, v.sub(v.mul(v.load(parameter), decay), step));
      });
    },
  });
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
