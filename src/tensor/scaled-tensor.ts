/**
 * @file A matrix of narrow codes with one scale a tile: real = code × scale.
 *
 *     codes [rows, columns]     E4M3 or E5M2, one byte each; E5M6 packed, two codes in three
 *                               bytes, each row by itself (numerics/e5m6.ts): [rows, ⌈1.5·columns⌉]
 *     scales [scaleRows, scaleColumns]                                   f32, also powers of two
 *
 * A tile has tileRows × tileColumns elements: 1×128 for activations, 128×1 for products that
 * contract over tokens, 128×128 for weights, 1×columns a row, rows×columns the tensor. Tiles at the
 * ends may be smaller. Where the rows come in groups, tiles begin anew with each group, so that a
 * group's codes do not depend on its neighbours:
 *
 *     none      scale row of row r: ⌊r / tileRows⌋
 *     equal     G stacked matrices of `rows` rows (the weights of experts):
 *               ⌊r / rows⌋ · ⌈rows / tileRows⌉ + ⌊(r mod rows) / tileRows⌋
 *     offsets   rows [offsets[g], offsets[g+1]) are group g (tokens sorted by expert):
 *               ⌊offsets[g] / tileRows⌋ + g + ⌊(r − offsets[g]) / tileRows⌋
 *
 * The last form lets a group's scales be found from its own offset alone, which only the device
 * knows; it has ⌊rows / tileRows⌋ + G scale rows, of which some are never written nor read.
 */
import { assert } from "../base/errors.ts";
import { ceilDiv, divExact, floorDiv, isIntegerIn } from "../base/integers.ts";
import type { CpuMemory } from "../device/cpu/memory.ts";
import { packedE5m6Bytes } from "../numerics/e5m6.ts";
import type { DType } from "./dtype.ts";
import type { Tensor } from "./tensor.ts";

/** Formats that codes can have; products read the first two. */
export const SCALED_FORMATS = ["e4m3", "e5m2", "e5m6"] as const;
export type ScaledFormat = (typeof SCALED_FORMATS)[number];

/** What the codes of a format are stored as. */
export const CODE_DTYPE = { e4m3: "e4m3", e5m2: "e5m2", e5m6: "u8" } as const;

/** Where tiles begin anew along the rows. */
export type RowGroups =
  | { readonly kind: "none" }
  | { readonly kind: "equal"; readonly rows: number }
  | { readonly kind: "offsets"; readonly offsets: Tensor<"i32"> };

export interface ScaledTensor<F extends ScaledFormat = ScaledFormat> {
  readonly format: F;
  readonly rows: number;
  readonly columns: number;
  readonly codes: Tensor<(typeof CODE_DTYPE)[F]>;
  readonly scales: Tensor<"f32">;
  readonly tileRows: number;
  readonly tileColumns: number;
  readonly groups: RowGroups;
}

/** What a scaled tensor is, without its memory. */
export interface ScaledShape<F extends ScaledFormat = ScaledFormat> {
  readonly format: F;
  readonly rows: number;
  readonly columns: number;
  readonly tileRows: number;
  readonly tileColumns: number;
  /** None if left out. */
  readonly groups?: RowGroups;
}

const NO_GROUPS: RowGroups = { kind: "none" };

/** Columns of the tensor that holds the codes. */
export function codeColumns(format: ScaledFormat, columns: number): number {
  return format === "e5m6" ? packedE5m6Bytes(columns) : columns;
}

/** Rows of the tensor that holds the scales. */
export function scaleRowsOf({ rows, tileRows, groups = NO_GROUPS }: ScaledShape): number {
  if (groups.kind === "none") return ceilDiv(rows, tileRows);
  if (groups.kind === "offsets") return floorDiv(rows, tileRows) + groups.offsets.columns - 1;
  return rows === 0 ? 0 : divExact(rows, groups.rows) * ceilDiv(groups.rows, tileRows);
}

/** Columns of the tensor that holds the scales. */
export function scaleColumnsOf({ columns, tileColumns }: ScaledShape): number {
  return ceilDiv(columns, tileColumns);
}

/** Bytes of codes and scales, padding not counted. */
export function scaledBytes(shape: ScaledShape): number {
  const codes = shape.rows * codeColumns(shape.format, shape.columns);
  return codes + 4 * scaleRowsOf(shape) * scaleColumnsOf(shape);
}

/** What tensors are allocated from; an `Arena` is one. */
interface TensorSource {
  allocate<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D>;
}

/** Uninitialised codes and scales. */
export function allocateScaled<F extends ScaledFormat>(
  arena: TensorSource,
  shape: ScaledShape<F>,
): ScaledTensor<F> {
  const { format, rows, columns } = shape;
  return makeScaled(shape, {
    codes: arena.allocate(CODE_DTYPE[format], [rows, codeColumns(format, columns)]),
    scales: arena.allocate("f32", [scaleRowsOf(shape), scaleColumnsOf(shape)]),
  });
}

/** A scaled tensor over existing codes and scales, whose shapes are asserted. */
export function makeScaled<F extends ScaledFormat>(
  shape: ScaledShape<F>,
  parts: Pick<ScaledTensor<F>, "codes" | "scales">,
): ScaledTensor<F> {
  const scaled = { ...shape, ...parts, groups: shape.groups ?? NO_GROUPS };
  assertScaled("scaled tensor", parts.codes.memory, scaled);
  return scaled;
}

/** Tiles and groups are whole, and codes and scales have the shapes that follow. */
export function assertScaled(name: string, memory: CpuMemory, scaled: ScaledTensor): void {
  const { format, rows, columns, codes, scales, tileRows, tileColumns, groups } = scaled;
  for (const side of [tileRows, tileColumns]) {
    assert(
      isIntegerIn(side, 1, Number.MAX_SAFE_INTEGER),
      `${name}: tiles of ${tileRows}×${tileColumns} must have whole sides >= 1`,
    );
  }
  if (groups.kind === "equal") {
    assert(
      isIntegerIn(groups.rows, 1, Number.MAX_SAFE_INTEGER) && rows % groups.rows === 0,
      `${name}: groups of ${groups.rows} rows must divide its ${rows}`,
    );
  }
  assert(codes.memory === memory, `${name}: codes must lie in this device's memory`);
  assert(scales.memory === memory, `${name}: scales must lie in this device's memory`);
  assert(
    codes.dtype === CODE_DTYPE[format],
    `${name}: codes of ${format} are ${CODE_DTYPE[format]}, not ${codes.dtype}`,
  );
  const wide = codeColumns(format, columns);
  assert(
    codes.rows === rows && codes.columns === wide,
    `${name}: codes are ${codes.rows}×${codes.columns}, not ${rows}×${wide}`,
  );
  const [scaleRows, scaleColumns] = [scaleRowsOf(scaled), scaleColumnsOf(scaled)];
  assert(
    scales.rows === scaleRows && scales.columns === scaleColumns,
    `${name}: scales are ${scales.rows}×${scales.columns}, not ${scaleRows}×${scaleColumns}`,
  );
}
