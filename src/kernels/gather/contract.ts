/**
 * @file Moving rows by index: dispatch to experts, combination of their results, embeddings.
 *
 *     gatherRows:     out[r] = src[index[r]]           f32 or bf16 → either, f64 → f64
 *     gatherBytes:    the same for rows of bytes: codes of narrow formats
 *     scatterRows:    out[index[r]] = x[r]             f32 → f32, bf16 → bf16, f64 → f64
 *     combineRows:    out[t] = base[t] + Σ_{k<K} src[index[t,k]]   added in order of k; K 1..16
 *     scatterAddRows: out[index[r]] += x[r]                      added in order of r
 *
 * scatterAddRows splits its work by columns, not by rows: two rows may go to the same place. The
 * indexes of scatterRows differ; rows that none of them names keep what they have.
 * An output overlaps no input, but that combineRows' base may be its output.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix, assertOperand, assertPerRow } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { columnOf, launchRows, matrix, perRow } from "../launch-rows.ts";

/** "from.to". */
export const GATHER_ROWS_VARIANTS = [
  "f32.f32",
  "f32.bf16",
  "bf16.f32",
  "bf16.bf16",
  "f64.f64",
] as const;
/** What is moved at once; words of four bytes where rows consist of them. */
export const GATHER_BYTES_VARIANTS = ["u8", "words"] as const;
export const GATHER_WORD_BYTES = 4;
export const SCATTER_ROWS_VARIANTS = ["f32.f32", "bf16.bf16", "f64.f64"] as const;
export const MAX_COMBINED = 16;
/** Rows of one loop over the columns. */
export const COMBINED_AT_ONCE = 4;
/** "f32.4": four rows combined. */
export const COMBINE_ROWS_VARIANTS: readonly string[] = ["f32", "f64"].flatMap((dtype) =>
  Array.from({ length: MAX_COMBINED }, (_, index) => `${dtype}.${index + 1}`),
);
export const SCATTER_ADD_VARIANTS = ["f32", "f64"] as const;

export const SCATTER_ADD_SLOTS = [
  "rows",
  "columns",
  "columnsPerTask",
  "xOffset",
  "xRowStride",
  "indexOffset",
  "indexStride",
  "outOffset",
  "outRowStride",
] as const;
export const SCATTER_ADD_AT: Record<(typeof SCATTER_ADD_SLOTS)[number], number> =
  slotIndex(SCATTER_ADD_SLOTS);
const SCATTER_COLUMNS_PER_TASK = 64;

export interface GatherRowsCall {
  readonly src: Tensor<FloatType | "bf16">;
  readonly index: Tensor<"i32">;
  readonly out: Tensor<FloatType | "bf16">;
}

export function gatherRows(device: Device, { src, index, out }: GatherRowsCall): void {
  const { rows, columns } = out;
  const variant = `${src.dtype}.${out.dtype}`;
  assert(
    (GATHER_ROWS_VARIANTS as readonly string[]).includes(variant),
    `gatherRows: no gather from ${src.dtype} to ${out.dtype}`,
  );
  assertMatrix(device, "gatherRows src", src, [src.dtype], src.rows, columns);
  assertOperand(device, "gatherRows out", out);
  assertPerRow(device, "gatherRows index", index, ["i32"], rows);
  assertIndexes("gatherRows index", index, 0, src.rows);
  launchRows(device, `gatherRows/${variant}`, {
    rows,
    columns,
    operands: [matrix(src), perRow(index), matrix(out)],
  });
}

export interface GatherBytesCall {
  readonly src: Tensor<"u8">;
  readonly index: Tensor<"i32">;
  readonly out: Tensor<"u8">;
}

export function gatherBytes(device: Device, { src, index, out }: GatherBytesCall): void {
  const { rows, columns } = out;
  assertMatrix(device, "gatherBytes src", src, ["u8"], src.rows, columns);
  assertMatrix(device, "gatherBytes out", out, ["u8"], rows, columns);
  assertPerRow(device, "gatherBytes index", index, ["i32"], rows);
  assertIndexes("gatherBytes index", index, 0, src.rows);
  const measures = [src, out].flatMap(({ byteOffset, rowStride }) => [byteOffset, rowStride]);
  const isWords = [columns, ...measures].every((bytes) => bytes % GATHER_WORD_BYTES === 0);
  const unit = isWords ? GATHER_WORD_BYTES : 1;
  launchRows(device, `gatherBytes/${isWords ? "words" : "u8"}`, {
    rows,
    columns: columns / unit,
    operands: [
      [src.byteOffset, src.rowStride / unit],
      perRow(index),
      [out.byteOffset, out.rowStride / unit],
    ],
  });
}

export interface ScatterRowsCall {
  readonly x: Tensor<FloatType | "bf16">;
  readonly index: Tensor<"i32">;
  readonly out: Tensor<FloatType | "bf16">;
}

export function scatterRows(device: Device, { x, index, out }: ScatterRowsCall): void {
  const { rows, columns } = x;
  const variant = `${x.dtype}.${out.dtype}`;
  assert(
    (SCATTER_ROWS_VARIANTS as readonly string[]).includes(variant),
    `scatterRows: no scatter from ${x.dtype} to ${out.dtype}`,
  );
  assertOperand(device, "scatterRows x", x);
  assertMatrix(device, "scatterRows out", out, [out.dtype], out.rows, columns);
  assertPerRow(device, "scatterRows index", index, ["i32"], rows);
  assertIndexes("scatterRows index", index, 0, out.rows);
  launchRows(device, `scatterRows/${variant}`, {
    rows,
    columns,
    operands: [matrix(x), perRow(index), matrix(out)],
  });
}

export interface CombineRowsCall {
  readonly src: Tensor<FloatType>;
  /** [T, K] */
  readonly index: Tensor<"i32">;
  /** What rows are added to: `out` if left out. */
  readonly base?: Tensor<FloatType>;
  readonly out: Tensor<FloatType>;
}

export function combineRows(device: Device, call: CombineRowsCall): void {
  const { src, index, out, base = out } = call;
  const { rows, columns, dtype } = out;
  const numCombined = index.columns;
  assert(
    numCombined >= 1 && numCombined <= MAX_COMBINED,
    `combineRows: ${numCombined} rows a token; at most ${MAX_COMBINED}`,
  );
  assertMatrix(device, "combineRows src", src, [dtype], src.rows, columns);
  assertMatrix(device, "combineRows out", out, ["f32", "f64"], rows, columns);
  assertMatrix(device, "combineRows base", base, [dtype], rows, columns);
  assertMatrix(device, "combineRows index", index, ["i32"], rows, numCombined);
  assertIndexes("combineRows index", index, 0, src.rows);
  launchRows(device, `combineRows/${dtype}.${numCombined}`, {
    rows,
    columns,
    operands: [
      matrix(base),
      ...Array.from({ length: Math.min(numCombined, COMBINED_AT_ONCE) }, () => matrix(src)),
      ...Array.from({ length: numCombined }, (_, rank) => columnOf(index, rank)),
      matrix(out),
    ],
  });
}

export interface ScatterAddRowsCall {
  readonly x: Tensor<FloatType>;
  readonly index: Tensor<"i32">;
  readonly out: Tensor<FloatType>;
}

export function scatterAddRows(device: Device, { x, index, out }: ScatterAddRowsCall): void {
  const { rows, columns, dtype } = x;
  assertMatrix(device, "scatterAddRows x", x, ["f32", "f64"], rows, columns);
  assertMatrix(device, "scatterAddRows out", out, [dtype], out.rows, columns);
  assert(index.rows === 1, "scatterAddRows: index is one row");
  assertPerRow(device, "scatterAddRows index", index, ["i32"], rows);
  assertIndexes("scatterAddRows index", index, 0, out.rows);
  device.launch(
    `scatterAddRows/${dtype}`,
    [
      rows,
      columns,
      SCATTER_COLUMNS_PER_TASK,
      x.byteOffset,
      x.rowStride,
      index.byteOffset,
      1,
      out.byteOffset,
      out.rowStride,
    ],
    ceilDiv(columns, SCATTER_COLUMNS_PER_TASK),
  );
}
