/** @file Sums of matrices as row programs; operands and scalars as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, numbered, row } from "../row-operands.ts";

/** `variant` is the dtype of x. */
export function accumulateProgram(variant: string): RowProgram {
  return rowProgram({
    name: `accumulate/${variant}`,
    operands: { x: row(floatOf(variant)), out: row() },
    scalars: ["scale"],
    body(v, { x, out }, { scale }) {
      v.columns(() => v.store(out, v.fma(v.load(x), scale, v.load(out))));
    },
  });
}

export function addRowsProgram(variant: string): RowProgram {
  return rowProgram({
    name: `addRows/${variant}`,
    operands: { a: row(), b: row(), out: row() },
    scalars: [],
    body(v, { a, b, out }) {
      v.columns(() => v.store(out, v.add(v.load(a), v.load(b))));
    },
  });
}

export function lerpProgram(variant: string): RowProgram {
  return rowProgram({
    name: `lerp/${variant}`,
    operands: { x: row(), out: row() },
    scalars: ["weight"],
    body(v, { x, out }, { weight }) {
      v.columns(() => {
        const before = v.load(out);
        v.store(out, v.fma(v.sub(v.load(x), before), weight, before));
      });
    },
  });
}

/** "f32.8": of eight addends. */
export function sumSlicesProgram(variant: string): RowProgram {
  const addends = numbered("x", Number(variant.split(".")[1]), row());
  return rowProgram({
    name: `sumSlices/${variant}`,
    operands: { ...addends, out: row() },
    scalars: [],
    body(v, operands) {
      v.columns(() => {
        const values = Object.keys(addends).map((name) =>
          v.load((operands as Readonly<Record<string, number>>)[name]!),
        );
        v.store(
          operands.out,
          values.reduce((sum, value) => v.add(sum, value)),
        );
      });
    },
  });
}
