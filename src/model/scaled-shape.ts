/** @file From a rule of the recipe to the shape of a scaled tensor, and to bytes. */
import { assert } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { codeColumns, type RowGroups, type ScaledShape } from "../tensor/scaled-tensor.ts";
import { isScaledFormat, type TensorRule } from "./precision-recipe.ts";

/** The shape of a scaled tensor under a rule. */
export function scaledShape(
  rule: TensorRule,
  rows: number,
  columns: number,
  groups: RowGroups = { kind: "none" },
): ScaledShape {
  const { format, tile } = rule;
  assert(isScaledFormat(format), `a scaled tensor's format is not ${format}`);
  const allRows = Math.max(1, groups.kind === "equal" ? groups.rows : rows);
  const allColumns = Math.max(1, columns);
  const [tileRows, tileColumns] = {
    none: [1, 1],
    "1x128": [1, 128],
    "128x1": [128, 1],
    "128x128": [128, 128],
    row: [1, allColumns],
    column: [allRows, 1],
    tensor: [allRows, allColumns],
  }[tile] as [number, number];
  return { format, rows, columns, tileRows, tileColumns, groups };
}

/** Bytes of one row under a rule, of the many that a tile over rows serves. */
export function rowBytes(rule: TensorRule, columns: number): number {
  const { format, tile } = rule;
  if (!isScaledFormat(format)) return columns * DTYPE_BYTES[format];
  const tiles = ceilDiv(columns, 128);
  const scales = {
    none: 0,
    "1x128": tiles,
    "128x1": columns / 128,
    "128x128": tiles / 128,
    row: 1,
    column: 0,
    tensor: 0,
  }[tile];
  return codeColumns(format, columns) + DTYPE_BYTES.f32 * scales;
}
