/** @file Moving rows by index as row programs; operands as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, gathered, numbered, perRow, row } from "../row-operands.ts";
import { COMBINED_AT_ONCE } from "./contract.ts";

/** "from.to". */
export function gatherRowsProgram(variant: string): RowProgram {
  const [from, to] = variant.split(".");
  return rowProgram({
    name: `gatherRows/${variant}`,
    operands: { src: gathered(floatOf(from)), index: perRow("i32"), out: row(floatOf(to)) },
    scalars: [],
    body(v, { src, index, out }) {
      v.locate(src, index);
      v.columns(() => v.store(out, v.load(src)));
    },
  });
}

/** "u8": byte by byte; "words": by four. */
export function gatherBytesProgram(variant: string): RowProgram {
  const dtype = variant === "words" ? "i32" : "u8";
  return rowProgram({
    name: `gatherBytes/${variant}`,
    operands: { src: gathered(dtype), index: perRow("i32"), out: row(dtype) },
    scalars: [],
    body(v, { src, index, out }) {
      v.locate(src, index);
      v.columns(() => v.storeBits(out, v.loadBits(src)));
    },
  });
}

/** "from.to". */
export function scatterRowsProgram(variant: string): RowProgram {
  const [from, to] = variant.split(".");
  return rowProgram({
    name: `scatterRows/${variant}`,
    operands: { x: row(floatOf(from)), index: perRow("i32"), out: gathered(floatOf(to)) },
    scalars: [],
    body(v, { x, index, out }) {
      v.locate(out, index);
      v.columns(() => v.store(out, v.load(x)), { where: out });
    },
  });
}

/**
 * "f32.4": four rows combined. As many as a loop takes are read side by side, so that memory is
 * asked for all of them at once; more are added to what is in the nearest cache by then.
 */
export function combineRowsProgram(variant: string): RowProgram {
  const count = Number(variant.split(".")[1]);
  const sources = numbered("src", Math.min(count, COMBINED_AT_ONCE), gathered());
  return rowProgram({
    name: `combineRows/${variant}`,
    operands: {
      base: row(),
      ...sources,
      ...numbered("index", count, perRow("i32")),
      out: row(),
    },
    scalars: [],
    body(v, operands) {
      const { base, out } = operands;
      const operand = (name: string): number => (operands as Record<string, number>)[name]!;
      for (let first = 0; first < count; first += COMBINED_AT_ONCE) {
        const rows = Object.keys(sources)
          .slice(0, count - first)
          .map(operand);
        for (const [at, src] of rows.entries()) v.locate(src, operand(`index${first + at}`));
        v.columns(() => {
          const start = v.load(first === 0 ? base : out);
          v.store(
            out,
            rows.reduce((sum, src) => v.add(sum, v.load(src)), start),
          );
        });
      }
    },
  });
}

/** A task owns some columns of all rows, so that rows with one index are added in order. */
export function scatterAddRowsProgram(variant: string): RowProgram {
  return rowProgram({
    name: `scatterAddRows/${variant}`,
    split: "columns",
    operands: { x: row(), index: perRow("i32"), out: gathered() },
    scalars: [],
    body(v, { x, index, out }) {
      v.locate(out, index);
      v.columns(() => v.store(out, v.add(v.load(out), v.load(x))), { where: out });
    },
  });
}
