/**
 * @file Rotary position embedding on interleaved pairs, in place.
 *
 *     (x[2i], x[2i+1]) ← (x[2i]·cos − x[2i+1]·sin,  x[2i+1]·cos + x[2i]·sin)
 *
 *   the angle is position · frequency_i
 *
 *   x_NR            N rows of R (even) columns; a slice of columns of a wider matrix is fine
 *   positions_N     row of the tables for each row of x
 *   cosTable_PR     cos of the pair's angle, written twice
 *   sinTable_PR     sin with the sign of its lane: −sin on even lanes, +sin on odd ones
 *
 * So that x ← x·cos + swapPairs(x)·sin. The inverse turns the other way (sin negated): it is also
 * the backward pass. The tables overlap neither x nor the positions. Interleaved pairs are what
 * released DeepSeek checkpoints use (fact sheet §1.3).
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix, assertPerRow } from "../door.ts";
import { launchRows, matrix, perRow } from "../launch-rows.ts";

export const ROPE_VARIANTS = ["f32", "f64"] as const;

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
  assert(columns % 2 === 0, `rope: ${columns} columns are not pairs`);
  assertMatrix(device, "rope x", x, ["f32", "f64"], rows, columns);
  assertPerRow(device, "rope positions", positions, ["i32"], rows);
  assertMatrix(device, "rope cosTable", cosTable, [dtype], cosTable.rows, columns);
  assertMatrix(device, "rope sinTable", sinTable, [dtype], cosTable.rows, columns);
  assertIndexes("rope positions", positions, 0, cosTable.rows);
  launchRows(device, `rope/${dtype}`, {
    rows,
    columns,
    operands: [matrix(x), perRow(positions), matrix(cosTable), matrix(sinTable)],
    scalars: [inverse ? -1 : 1],
  });
}
