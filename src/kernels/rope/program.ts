/** @file Rotary position embedding as a row program; operands and scalars as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { gathered, perRow, row } from "../row-operands.ts";

export function ropeProgram(variant: string): RowProgram {
  return rowProgram({
    name: `rope/${variant}`,
    operands: { x: row(), positions: perRow("i32"), cosTable: gathered(), sinTable: gathered() },
    scalars: ["direction"],
    body(v, { x, positions, cosTable, sinTable }, { direction }) {
      v.locate(cosTable, positions);
      v.locate(sinTable, positions);
      v.columns(() => {
        const value = v.load(x);
        const sine = v.mul(v.load(sinTable), direction);
        v.store(x, v.fma(value, v.load(cosTable), v.mul(v.swapPairs(value), sine)));
      });
    },
  });
}
