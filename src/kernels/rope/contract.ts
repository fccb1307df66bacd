/**
 * @file Rotary position embedding on interleaved pairs, in place.
 *
 *     (x[2i], x[2i+1]) ← (x[2i]·cos − x[2i+1]·sin,  x[2i+1]·cos + x[2i]·sin)
 *
 *   the angle is position · frequency_i
 *
 *   x_NR            N rows of R (even) columns; a slice of columns of a wider matrix is fine
 *   positions_T     row of the tables for each token; a token has N ÷ T neighbouring rows of x
 *   cosTable_PR     cos of the pair's angle, written twice
 *   sinTable_PR     sin with the sign of its lane: −sin on even lanes, +sin on odd ones
 *
 * So that x ← x·cos + swapPairs(x)·sin. The inverse turns the other way (sin negated): it is also
 * the backward pass. The tables overlap neither x nor the positions. Up to eight rows of a token
 * are turned together, for a row is short and finding its angles takes longer than turning it.
 * Interleaved pairs are what released DeepSeek checkpoints use (fact sheet §1.3).
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { DTYPE_BYTES, type FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix, assertPerRow } from "../door.ts";
import { launchRows, matrix, perRow, type RowOperand } from "../launch-rows.ts";

/** Rows of a token that are turned together. */
export const ROPE_ROWS_MOST = 8;

/** "f32.8": eight rows of each token. */
export const ROPE_VARIANTS: readonly string[] = ["f32", "f64"].flatMap((dtype) =>
  Array.from({ length: ROPE_ROWS_MOST }, (_, index) => `${dtype}.${index + 1}`),
);

export interface RopeCall {
  readonly x: Tensor<FloatType>;
  readonly positions: Tensor<"i32">;
  readonly cosTable: Tensor<FloatType>;
  readonly sinTable: Tensor<FloatType>;
  readonly inverse: boolean;
}

export function rope(device: Device, call: RopeCall): void {
  const { x, positions, cosTable, sinTable, inverse } = call;
  const { rows, columns, dtype } = x;
  const numTokens = positions.columns;
  assert(columns % 2 === 0, `rope: ${columns} columns are not pairs`);
  assertMatrix(device, "rope x", x, ["f32", "f64"], rows, columns);
  assertPerRow(device, "rope positions", positions, ["i32"], numTokens);
  assertMatrix(device, "rope cosTable", cosTable, [dtype], cosTable.rows, columns);
  assertMatrix(device, "rope sinTable", sinTable, [dtype], cosTable.rows, columns);
  assertIndexes("rope positions", positions, 0, cosTable.rows);
  if (numTokens === 0) return;
  const rowsPerToken = divExact(rows, numTokens);
  const rowOfToken = (row: number): RowOperand => [
    x.byteOffset + row * x.rowStride * DTYPE_BYTES[dtype],
    x.rowStride * rowsPerToken,
  ];
  for (let first = 0; first < rowsPerToken; first += ROPE_ROWS_MOST) {
    const count = Math.min(ROPE_ROWS_MOST, rowsPerToken - first);
    const together = Array.from({ length: count }, (_, index) => rowOfToken(first + index));
    launchRows(device, `rope/${dtype}.${count}`, {
      rows: numTokens,
      columns,
      operands: [...together, perRow(positions), matrix(cosTable), matrix(sinTable)],
      scalars: [inverse ? -1 : 1],
    });
  }
}
