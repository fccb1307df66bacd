/** @file Moving rows by index, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { DTYPE_BYTES, type FloatType } from "../../tensor/dtype.ts";
import { slot } from "../kernel.ts";
import { referenceRows } from "../reference-rows.ts";
import { SCATTER_ADD_AT as AT, COMBINED_AT_ONCE, GATHER_WORD_BYTES } from "./contract.ts";

export function createReferenceGatherRows(variant: string, context: ThreadContext): KernelBody {
  const [from, to] = variant.split(".") as [FloatType | "bf16", FloatType | "bf16"];
  return referenceRows(context, [from, "i32", to], ([src, index, out], { row, columns }) => {
    const source = index!.get(row, 0);
    for (let column = 0; column < columns; column++) {
      out!.set(row, column, src!.get(source, column));
    }
  });
}

/** One copy of bytes a row. */
export function createReferenceGatherBytes(variant: string, context: ThreadContext): KernelBody {
  const unit = variant === "words" ? GATHER_WORD_BYTES : 1;
  const [ROWS, COLUMNS, ROWS_PER_TASK] = [0, 1, 2];
  const [SRC, INDEX, OUT] = [3, 5, 7];
  return (slots, firstTask, endTask) => {
    const bytes = context.memory.u8;
    const columns = slot(slots, COLUMNS);
    const rowsPerTask = slot(slots, ROWS_PER_TASK);
    const end = Math.min(slot(slots, ROWS), endTask * rowsPerTask);
    for (let row = firstTask * rowsPerTask; row < end; row++) {
      const index = context.memory.i32[slot(slots, INDEX) / 4 + row * slot(slots, INDEX + 1)]!;
      const start = slot(slots, SRC) + index * slot(slots, SRC + 1) * unit;
      const target = slot(slots, OUT) + row * slot(slots, OUT + 1) * unit;
      bytes.copyWithin(target, start, start + columns * unit);
    }
  };
}

export function createReferenceScatterRows(variant: string, context: ThreadContext): KernelBody {
  const [from, to] = variant.split(".") as [FloatType | "bf16", FloatType | "bf16"];
  return referenceRows(context, [from, "i32", to], ([x, index, out], { row, columns }) => {
    const target = index!.get(row, 0);
    for (let column = 0; column < columns; column++) {
      out!.set(target, column, x!.get(row, column));
    }
  });
}

export function createReferenceCombineRows(variant: string, context: ThreadContext): KernelBody {
  const [dtype, count] = variant.split(".") as [FloatType, string];
  const sources = Array.from({ length: Math.min(Number(count), COMBINED_AT_ONCE) }, () => dtype);
  const indexes = Array.from({ length: Number(count) }, () => "i32" as const);
  const dtypes = [dtype, ...sources, ...indexes, dtype];
  return referenceRows(context, dtypes, (operands, { row, columns }) => {
    const [base] = operands;
    const out = operands[operands.length - 1]!;
    const rows = operands
      .slice(1 + sources.length, -1)
      .map((index, rank) => [operands[1 + (rank % sources.length)]!, index.get(row, 0)] as const);
    for (let column = 0; column < columns; column++) {
      const start = base!.get(row, column);
      out.set(
        row,
        column,
        rows.reduce((sum, [src, source]) => sum + src.get(source, column), start),
      );
    }
  });
}

export function createReferenceScatterAddRows(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  const bytes = DTYPE_BYTES[dtype];
  return (slots, firstTask, endTask) => {
    const floats = context.memory[dtype];
    const words = context.memory.i32;
    const perTask = slot(slots, AT.columnsPerTask);
    const [xStride, outStride] = [slot(slots, AT.xRowStride), slot(slots, AT.outRowStride)];
    const [x, out] = [slot(slots, AT.xOffset) / bytes, slot(slots, AT.outOffset) / bytes];
    const index = slot(slots, AT.indexOffset) / 4;
    const indexStride = slot(slots, AT.indexStride);
    const rows = slot(slots, AT.rows);
    const first = firstTask * perTask;
    const end = Math.min(endTask * perTask, slot(slots, AT.columns));
    for (let row = 0; row < rows; row++) {
      const from = x + row * xStride;
      const to = out + words[index + row * indexStride]! * outStride;
      for (let column = first; column < end; column++) {
        floats[to + column]! += floats[from + column]!;
      }
    }
  };
}
