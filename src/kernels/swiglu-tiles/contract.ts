/**
 * @file The gated activation between codes: what is read and what is written are scaled tensors,
 * and what lies between them exists a few rows at a time.
 *
 *     swigluTiles           kept = quantizeTiles(gateUp)
 *                           out  = quantizeTiles(swiglu(gateUp, weight))
 *     swigluTilesBackward   dGateUp, activation, dWeight =
 *                             swigluBackward(dequantizeTiles(gateUp), weight, dOut)
 *                           along   = quantizeTiles(dGateUp)       tiles of one row
 *                           across  = quantizeTiles(dGateUp)       tiles of one column
 *                           input   = quantizeTiles(activation)    tiles of one column
 *
 *   gateUp_T2I, dOut_TI, weight_T as in swiglu/contract.ts; activation and dGateUp are bf16
 *
 * To the bit what those kernels make of each other's results, and for the same reasons; this one
 * spares the memory between them. Tiles of kept, out, gateUp and along have one row and no groups;
 * across and input have the same bands, of at most 128 rows. Outputs overlap no input.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { ScaledTensor } from "../../tensor/scaled-tensor.ts";
import { sliceColumns, type Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertPerRow } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { matrix } from "../launch-rows.ts";
import { BAND_SLOTS, bandSlots } from "../quantize-tiles/bands.ts";
import {
  assertBandTiles,
  assertRowTiles,
  assertSameBands,
  BAND_TILES,
  bandTileSlots,
  named,
  OPEN_ELEMENTS,
  operandOr,
  ROW_OPERAND,
  ROW_TILES,
  rowTileSlots,
  type TilesToMake,
} from "../tile-slots.ts";

/** Whether rows have weights. */
export const SWIGLU_TILES_VARIANTS = ["plain", "weighted"] as const;

/** The widest activation whose rows fit a thread's scratch. */
export const SWIGLU_TILES_COLUMNS = 16384;

type TilesSlot =
  | ("rows" | "columns" | "rowsPerTask")
  | `${"gate" | "up" | "weight"}${(typeof ROW_OPERAND)[number]}`
  | `${"kept" | "out"}${(typeof ROW_TILES)[number]}`;
type BackwardSlot =
  | (typeof BAND_SLOTS)[number]
  | `${"weight" | "dWeight" | "dOut"}${(typeof ROW_OPERAND)[number]}`
  | `${"gateUp" | "along"}${(typeof ROW_TILES)[number]}`
  | `${"across" | "input"}${(typeof BAND_TILES)[number]}`;

export const SWIGLU_TILES_SLOTS: readonly TilesSlot[] = [
  ...(["rows", "columns", "rowsPerTask"] as const),
  ...named("gate", ROW_OPERAND),
  ...named("up", ROW_OPERAND),
  ...named("weight", ROW_OPERAND),
  ...named("kept", ROW_TILES),
  ...named("out", ROW_TILES),
];
export const SWIGLU_TILES_AT: Readonly<Record<TilesSlot, number>> = slotIndex(SWIGLU_TILES_SLOTS);

export const SWIGLU_TILES_BACKWARD_SLOTS: readonly BackwardSlot[] = [
  ...BAND_SLOTS,
  ...named("gateUp", ROW_TILES),
  ...named("weight", ROW_OPERAND),
  ...named("dWeight", ROW_OPERAND),
  ...named("dOut", ROW_OPERAND),
  ...named("along", ROW_TILES),
  ...named("across", BAND_TILES),
  ...named("input", BAND_TILES),
];
export const SWIGLU_TILES_BACKWARD_AT: Readonly<Record<BackwardSlot, number>> = slotIndex(
  SWIGLU_TILES_BACKWARD_SLOTS,
);

export interface SwigluTilesCall {
  readonly gateUp: Tensor<"f32">;
  readonly weight?: Tensor<"f32"> | undefined;
  readonly kept: TilesToMake;
  readonly out: TilesToMake;
}

export function swigluTiles(device: Device, call: SwigluTilesCall): void {
  const { gateUp, weight, kept, out } = call;
  const { rows } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  assertColumns("swigluTiles", columns);
  assertMatrix(device, "swigluTiles gateUp", gateUp, ["f32"], rows, 2 * columns);
  if (weight !== undefined) assertPerRow(device, "swigluTiles weight", weight, ["f32"], rows);
  assertRowTiles(device, "swigluTiles kept", kept.out, [rows, 2 * columns]);
  assertRowTiles(device, "swigluTiles out", out.out, [rows, columns]);
  if (rows === 0 || columns === 0) return;
  const rowsPerTask = ceilDiv(OPEN_ELEMENTS, 2 * columns);
  const slots = [
    ...[rows, columns, rowsPerTask],
    ...matrix(sliceColumns(gateUp, 0, columns)),
    ...matrix(sliceColumns(gateUp, columns, 2 * columns)),
    ...operandOr(weight),
    ...rowTileSlots("swigluTiles kept", kept),
    ...rowTileSlots("swigluTiles out", out),
  ];
  device.launch(`swigluTiles/${variantOf(weight)}`, slots, ceilDiv(rows, rowsPerTask));
}

export interface SwigluTilesBackwardCall {
  readonly gateUp: ScaledTensor;
  readonly weight?: Tensor<"f32"> | undefined;
  /** Comes with `weight`. */
  readonly dWeight?: Tensor<"f32"> | undefined;
  readonly dOut: Tensor<"f32">;
  readonly along: TilesToMake;
  readonly across: TilesToMake;
  readonly input: TilesToMake;
}

export function swigluTilesBackward(device: Device, call: SwigluTilesBackwardCall): void {
  const { gateUp, weight, dWeight, dOut, along, across, input } = call;
  const name = "swigluTilesBackward";
  const { rows } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  assertColumns(name, columns);
  assert(
    (weight === undefined) === (dWeight === undefined),
    `${name}: weight and dWeight come together`,
  );
  for (const tensor of [weight, dWeight]) {
    if (tensor !== undefined) assertPerRow(device, `${name} weight`, tensor, ["f32"], rows);
  }
  assertMatrix(device, `${name} dOut`, dOut, ["f32"], rows, columns);
  assertRowTiles(device, `${name} gateUp`, gateUp, [rows, 2 * columns]);
  assertRowTiles(device, `${name} along`, along.out, [rows, 2 * columns]);
  assertBandTiles(device, `${name} across`, across.out, [rows, 2 * columns]);
  assertBandTiles(device, `${name} input`, input.out, [rows, columns]);
  assertSameBands(name, across.out, input.out);
  if (rows === 0 || columns === 0) return;
  const slots = [
    ...Object.values(bandSlots(input.out, { bandsPerTask: 1, columnsPerTask: columns })),
    ...rowTileSlots(`${name} gateUp`, { out: gateUp, amaxMin: 1, powerOfTwo: false }),
    ...operandOr(weight),
    ...operandOr(dWeight),
    ...matrix(dOut),
    ...rowTileSlots(`${name} along`, along),
    ...bandTileSlots(`${name} across`, across),
    ...bandTileSlots(`${name} input`, input),
  ];
  device.launch(`${name}/${variantOf(weight)}`, slots, input.out.scales.rows);
}

function variantOf(weight: Tensor | undefined): (typeof SWIGLU_TILES_VARIANTS)[number] {
  return weight === undefined ? "plain" : "weighted";
}

function assertColumns(name: string, columns: number): void {
  assert(
    columns <= SWIGLU_TILES_COLUMNS,
    `${name}: ${columns} columns; at most ${SWIGLU_TILES_COLUMNS}`,
  );
}
