/** @file Moving rows by index as row programs; operands as in the contract. */
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, gathered, perRow, row } from "../row-operands.ts";

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

/** "f32.4": four rows combined, one after the other: the output row stays in the nearest cache. */
export function combineRowsProgram(variant: string): RowProgram {
  const count = Number(variant.split(".")[1]);
  const ranks = Array.from({ length: count }, (_, rank) => `index${rank}`);
  return rowProgram({
    name: `combineRows/${variant}`,
    operands: {
      src: gathered(),
      ...Object.fromEntries(ranks.map((name) => [name, perRow("i32")])),
      out: row(),
    },
    scalars: [],
    body(v, operands) {
      const { src, out } = operands;
      for (const name of ranks) {
        v.locate(src, (operands as Record<string, number>)[name]!);
        v.columns(() => v.store(out, v.add(v.load(out), v.load(src))), { where: src });
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
