/** @file Rotary position embedding as a row program; operands and scalars as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { gathered, numbered, perRow, row } from "../row-operands.ts";

/** "f32.8": eight rows of each token. */
export function ropeProgram(variant: string): RowProgram {
  const rows = numbered("x", Number(variant.split(".")[1]), row());
  return rowProgram({
    name: `rope/${variant}`,
    operands: { ...rows, positions: perRow("i32"), cosTable: gathered(), sinTable: gathered() },
    scalars: ["direction"],
    body(v, operands, { direction }) {
      const { positions, cosTable, sinTable } = operands;
      v.locate(cosTable, positions);
      v.locate(sinTable, positions);
      v.columns(() => {
        const cosine = v.load(cosTable);
        const sine = v.mul(v.load(sinTable), direction);
        for (const name of Object.keys(rows)) {
          const x = (operands as Readonly<Record<string, number>>)[name]!;
          const value = v.load(x);
          v.store(x, v.fma(value, cosine, v.mul(v.swapPairs(value), sine)));
        }
      });
    },
  });
}
