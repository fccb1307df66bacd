/**
 * @file Tiles of one source that is read once: along the rows and along the columns, of the source
 * itself or of its norm.
 *
 *     y       = x, or bf16(rmsNorm(x, gain, epsilon))
 *     along   = quantizeTiles(y)       tiles of one row, no groups
 *     across  = quantizeTiles(y)       tiles of one column, at most 128 rows high
 *
 * Of a norm either may be left out. To the bit what those kernels make of each other's results, and
 * for the same reasons; the norm exists a few rows at a time. Outputs overlap no input.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { BAND_SLOTS, bandSlots } from "../quantize-tiles/bands.ts";
import {
  assertBandTiles,
  assertRowTiles,
  BAND_TILES,
  bandTileSlots,
  named,
  OPEN_ELEMENTS,
  ROW_OPERAND,
  ROW_TILES,
  rowTileSlots,
  type TilesToMake,
} from "../tile-slots.ts";

/** What tiles are of, and which are made. */
export const MAKE_TILES_VARIANTS = [
  "f32.both",
  "bf16.both",
  "norm.along",
  "norm.across",
  "norm.both",
] as const;

/** The widest source whose rows fit a thread's scratch. */
export const MAKE_TILES_COLUMNS = 32768;

type MakeTilesSlot =
  | (typeof BAND_SLOTS)[number]
  | `${"x" | "gain"}${(typeof ROW_OPERAND)[number]}`
  | ("epsilon" | "rowsPerTask")
  | `along${(typeof ROW_TILES)[number]}`
  | `across${(typeof BAND_TILES)[number]}`;

/** Bands are those of `across`; without it rows are divided by `rowsPerTask`. */
export const MAKE_TILES_SLOTS: readonly MakeTilesSlot[] = [
  ...BAND_SLOTS,
  ...named("x", ROW_OPERAND),
  ...named("gain", ROW_OPERAND),
  ...(["epsilon", "rowsPerTask"] as const),
  ...named("along", ROW_TILES),
  ...named("across", BAND_TILES),
];
export const MAKE_TILES_AT: Readonly<Record<MakeTilesSlot, number>> = slotIndex(MAKE_TILES_SLOTS);

export interface TileNorm {
  /** [1, D] */
  readonly gain: Tensor<"f32">;
  readonly epsilon: number;
}

export interface MakeTilesCall {
  /** f32, or bf16 without a norm. */
  readonly x: Tensor<"f32" | "bf16">;
  readonly norm?: TileNorm;
  readonly along?: TilesToMake;
  readonly across?: TilesToMake;
}

export function makeTiles(device: Device, { x, norm, along, across }: MakeTilesCall): void {
  const { rows, columns } = x;
  const dtypes = norm === undefined ? (["f32", "bf16"] as const) : (["f32"] as const);
  assertMatrix(device, "makeTiles x", x, dtypes, rows, columns);
  assert(
    columns <= MAKE_TILES_COLUMNS,
    `makeTiles: ${columns} columns; at most ${MAKE_TILES_COLUMNS}`,
  );
  if (norm !== undefined) {
    assertMatrix(device, "makeTiles gain", norm.gain, ["f32"], 1, columns);
  }
  if (along !== undefined) assertRowTiles(device, "makeTiles along", along.out, [rows, columns]);
  if (across !== undefined) {
    assertBandTiles(device, "makeTiles across", across.out, [rows, columns]);
  }
  const made = along === undefined ? "across" : across === undefined ? "along" : "both";
  const variant = `${norm === undefined ? x.dtype : "norm"}.${made}`;
  assert(
    (MAKE_TILES_VARIANTS as readonly string[]).includes(variant) && (along ?? across) !== undefined,
    `makeTiles: ${variant} is not one of ${MAKE_TILES_VARIANTS.join(", ")}`,
  );
  if (rows === 0 || columns === 0) return;
  const rowsPerTask = ceilDiv(OPEN_ELEMENTS, columns);
  const division = { bandsPerTask: 1, columnsPerTask: columns };
  const bands = bandSlots((across ?? along!).out, division);
  const slots = [
    ...Object.values(bands),
    ...[x.byteOffset, x.rowStride],
    ...(norm === undefined ? [0, 0, 0] : [norm.gain.byteOffset, 0, norm.epsilon]),
    rowsPerTask,
    ...(along === undefined ? ROW_TILES.map(() => 0) : rowTileSlots("makeTiles along", along)),
    ...(across === undefined ? BAND_TILES.map(() => 0) : bandTileSlots("makeTiles across", across)),
  ];
  const numTasks = across === undefined ? ceilDiv(rows, rowsPerTask) : bands.numBands;
  device.launch(`makeTiles/${variant}`, slots, numTasks);
}
