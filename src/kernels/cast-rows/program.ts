/** @file Copying rows into another dtype as a row program. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, row } from "../row-operands.ts";

/** "from.to". */
export function castRowsProgram(variant: string): RowProgram {
  const [from, to] = variant.split(".");
  return rowProgram({
    name: `castRows/${variant}`,
    operands: { x: row(floatOf(from)), out: row(floatOf(to)) },
    scalars: [],
    body(v, { x, out }) {
      v.columns(() => v.store(out, v.load(x)));
    },
  });
}
