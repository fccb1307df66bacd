/**
 * @file What the doors of kernels made of steps share: slots of scaled operands, and what is
 * asserted of them.
 */
import { assert } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { SCALED_FORMATS, type ScaledTensor } from "../tensor/scaled-tensor.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { perRow, type RowOperand } from "./launch-rows.ts";
import { assertTiles, ruleSlots, type TileScaleRule } from "./quantize-tiles/contract.ts";

/** The highest tiles of one column. */
export const TILE_ROWS_MOST = 128;
/** Elements of f32 that are opened at once: they stay in the second-level cache. */
export const OPEN_ELEMENTS = 32768;

/** A scaled tensor whose tiles have one row. */
export const ROW_TILES = [
  "CodesOffset",
  "CodesRowStride",
  "ScalesOffset",
  "ScaleRowStride",
  "TileColumns",
  "Format",
  "AmaxMin",
  "PowerOfTwo",
] as const;
/** One whose bands are those of another. */
export const BAND_TILES = [
  "CodesOffset",
  "CodesRowStride",
  "ScalesOffset",
  "ScaleRowStride",
  "Format",
  "AmaxMin",
  "PowerOfTwo",
] as const;
export const ROW_OPERAND = ["Offset", "Stride"] as const;

export function named<P extends string, const N extends string>(
  prefix: P,
  names: readonly N[],
): readonly `${P}${N}`[] {
  return names.map((name): `${P}${N}` => `${prefix}${name}`);
}

/** Codes to be made. */
export interface TilesToMake extends TileScaleRule {
  readonly out: ScaledTensor;
}

/** One value a row, or none. */
export function operandOr(tensor: Tensor | undefined): RowOperand {
  return tensor === undefined ? [0, 0] : perRow(tensor);
}

function assertShape(
  device: Device,
  name: string,
  tiles: ScaledTensor,
  [rows, columns]: readonly [number, number],
): void {
  assertTiles(device, name, tiles);
  assert(
    tiles.rows === rows && tiles.columns === columns,
    `${name} is ${tiles.rows}×${tiles.columns}, not ${rows}×${columns}`,
  );
}

export function assertRowTiles(
  device: Device,
  name: string,
  tiles: ScaledTensor,
  shape: readonly [number, number],
): void {
  assertShape(device, name, tiles, shape);
  const { tileRows, groups } = tiles;
  assert(tileRows === 1 && groups.kind === "none", `${name}: tiles must have one row, no groups`);
}

export function assertBandTiles(
  device: Device,
  name: string,
  tiles: ScaledTensor,
  shape: readonly [number, number],
): void {
  assertShape(device, name, tiles, shape);
  const { tileRows, tileColumns } = tiles;
  const fits = tileColumns === 1 && tileRows <= TILE_ROWS_MOST;
  assert(fits, `${name}: tiles of ${tileRows}×${tileColumns}; at most ${TILE_ROWS_MOST}×1`);
}

/** Two tensors have tiles of the same rows. */
export function assertSameBands(name: string, one: ScaledTensor, other: ScaledTensor): void {
  const areSame = JSON.stringify(bandsOf(one)) === JSON.stringify(bandsOf(other));
  assert(areSame, `${name}: all tiles of one column must have the same rows`);
}

/** What tells bands apart. */
function bandsOf({ tileRows, groups }: ScaledTensor): readonly [number, string, number] {
  if (groups.kind === "none") return [tileRows, "none", 0];
  const of = groups.kind === "equal" ? groups.rows : groups.offsets.byteOffset;
  return [tileRows, groups.kind, of];
}

export function rowTileSlots(name: string, tiles: TilesToMake): readonly number[] {
  const { codes, scales, tileColumns, columns, format } = tiles.out;
  return [
    ...[codes.byteOffset, codes.rowStride, scales.byteOffset, scales.rowStride],
    ...[Math.min(tileColumns, columns), SCALED_FORMATS.indexOf(format)],
    ...ruleSlots(name, tiles),
  ];
}

export function bandTileSlots(name: string, tiles: TilesToMake): readonly number[] {
  const { codes, scales, format } = tiles.out;
  return [
    ...[codes.byteOffset, codes.rowStride, scales.byteOffset, scales.rowStride],
    ...[SCALED_FORMATS.indexOf(format)],
    ...ruleSlots(name, tiles),
  ];
}
