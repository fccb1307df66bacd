/**
 * @file Quantisation with one scale a tile, its inverse, and both at once into tiles of another
 * shape.
 *
 *     quantizeTiles     scale_P = max(amax_P, amaxMin) / largest(format)          for each tile P
 *                       code    = format(x / scale_P)
 *     dequantizeTiles   out     = code · scale_P
 *     retile            quantizeTiles of dequantizeTiles of x, which exist nowhere in between
 *
 *   x, out     f32 or bf16 on the open side; E4M3, E5M2 or packed E5M6 on the scaled one
 *   retile     from any format without groups by offsets to E4M3 or E5M2; rows stay in place
 *
 * Every step is bit-exact, for every implementation: amax of the float32 values (NaN counts as
 * nothing), one float32 division for the scale, with `powerOfTwo` the smallest power of two not
 * below it, one float32 division and one rounding a code (nearest even, E4M3 saturating), one
 * float32 product back (then one rounding for bf16). A NaN makes its own code NaN; an infinity
 * makes its tile's scale infinite and so every value of the tile NaN. Its own code is a NaN too, of
 * either sign: ∞ ÷ ∞ has none of its own. Rows that belong to no group are neither read nor
 * written. Re-tiling from power-of-two scales to power-of-two scales rounds nothing of a code that
 * stays a normal number of its format: its significand does not change.
 *
 * The unused half byte after an odd last E5M6 code is zero: written so, and relied upon.
 *
 * Outputs overlap no input. Source: numerics/scales.ts, which has the same arithmetic on arrays.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import {
  assertScaled,
  SCALED_FORMATS,
  type ScaledFormat,
  type ScaledTensor,
} from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOperand } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { assertRowGroups, BAND_SLOTS, planBands } from "./bands.ts";

const OPEN_DTYPES = ["f32", "bf16"] as const;
export type OpenDType = (typeof OPEN_DTYPES)[number];
const PRODUCT_FORMATS = ["e4m3", "e5m2"] as const;

/** "from.to". */
export const QUANTIZE_TILES_VARIANTS: readonly string[] = OPEN_DTYPES.flatMap((from) =>
  SCALED_FORMATS.map((to) => `${from}.${to}`),
);
/** "from.to". */
export const DEQUANTIZE_TILES_VARIANTS: readonly string[] = SCALED_FORMATS.flatMap((from) =>
  OPEN_DTYPES.map((to) => `${from}.${to}`),
);
/** "from.to". */
export const RETILE_VARIANTS: readonly string[] = SCALED_FORMATS.flatMap((from) =>
  PRODUCT_FORMATS.map((to) => `${from}.${to}`),
);

/** Behind the slots of the bands: the scale rule, then the other operand. */
const RULE_SLOTS = ["amaxMin", "powerOfTwo"] as const;
const OPEN_SLOTS = ["openOffset", "openRowStride"] as const;
const SOURCE_SLOTS = [
  "xOffset",
  "xRowStride",
  "xScalesOffset",
  "xScaleRowStride",
  "xTileRows",
  "xTileColumns",
  "xGroupRows",
] as const;

type BandSlot = (typeof BAND_SLOTS)[number];
type RuleSlot = (typeof RULE_SLOTS)[number];
type OpenSlot = (typeof OPEN_SLOTS)[number];
type SourceSlot = (typeof SOURCE_SLOTS)[number];

export const QUANTIZE_TILES_SLOTS: readonly (BandSlot | RuleSlot | OpenSlot)[] = [
  ...BAND_SLOTS,
  ...RULE_SLOTS,
  ...OPEN_SLOTS,
];
export const DEQUANTIZE_TILES_SLOTS: readonly (BandSlot | OpenSlot)[] = [
  ...BAND_SLOTS,
  ...OPEN_SLOTS,
];
export const RETILE_SLOTS: readonly (BandSlot | RuleSlot | SourceSlot)[] = [
  ...BAND_SLOTS,
  ...RULE_SLOTS,
  ...SOURCE_SLOTS,
];
export const QUANTIZE_TILES_AT: Readonly<Record<BandSlot | RuleSlot | OpenSlot, number>> =
  slotIndex(QUANTIZE_TILES_SLOTS);
export const DEQUANTIZE_TILES_AT: Readonly<Record<BandSlot | OpenSlot, number>> =
  slotIndex(DEQUANTIZE_TILES_SLOTS);
export const RETILE_AT: Readonly<Record<BandSlot | RuleSlot | SourceSlot, number>> =
  slotIndex(RETILE_SLOTS);

/** How a tile's scale follows from its amax. */
export interface TileScaleRule {
  /** A smaller amax counts as this one; rounded to float32. */
  readonly amaxMin: number;
  readonly powerOfTwo: boolean;
}

export interface QuantizeTilesCall extends TileScaleRule {
  readonly x: Tensor<OpenDType>;
  readonly out: ScaledTensor;
}

export interface DequantizeTilesCall {
  readonly x: ScaledTensor;
  readonly out: Tensor<OpenDType>;
}

export interface RetileCall extends TileScaleRule {
  readonly x: ScaledTensor;
  readonly out: ScaledTensor<"e4m3" | "e5m2">;
}

export function quantizeTiles(device: Device, call: QuantizeTilesCall): void {
  const { x, out } = call;
  assertMatrix(device, "quantizeTiles x", x, OPEN_DTYPES, out.rows, out.columns);
  assertTiles(device, "quantizeTiles out", out);
  const { slots, numTasks } = planBands(out);
  launchTiles(device, `quantizeTiles/${x.dtype}.${out.format}`, numTasks, [
    ...Object.values(slots),
    ...ruleSlots("quantizeTiles", call),
    x.byteOffset,
    x.rowStride,
  ]);
}

export function dequantizeTiles(device: Device, { x, out }: DequantizeTilesCall): void {
  assertMatrix(device, "dequantizeTiles out", out, OPEN_DTYPES, x.rows, x.columns);
  assertTiles(device, "dequantizeTiles x", x);
  const { slots, numTasks } = planBands(x);
  launchTiles(device, `dequantizeTiles/${x.format}.${out.dtype}`, numTasks, [
    ...Object.values(slots),
    out.byteOffset,
    out.rowStride,
  ]);
}

export function retile(device: Device, call: RetileCall): void {
  const { x, out } = call;
  assertTiles(device, "retile x", x);
  assertTiles(device, "retile out", out);
  const isProductFormat = (PRODUCT_FORMATS as readonly ScaledFormat[]).includes(out.format);
  assert(isProductFormat, `retile: out is ${out.format}; allowed: ${PRODUCT_FORMATS.join(", ")}`);
  assert(x.groups.kind !== "offsets", "retile: x must not have groups by offsets");
  assert(
    x.rows === out.rows && x.columns === out.columns,
    `retile: x is ${x.rows}×${x.columns}, out ${out.rows}×${out.columns}`,
  );
  const { slots, numTasks } = planBands(out);
  launchTiles(device, `retile/${x.format}.${out.format}`, numTasks, [
    ...Object.values(slots),
    ...ruleSlots("retile", call),
    x.codes.byteOffset,
    x.codes.rowStride,
    x.scales.byteOffset,
    x.scales.rowStride,
    x.tileRows,
    x.tileColumns,
    x.groups.kind === "equal" ? x.groups.rows : 0,
  ]);
}

/** A scaled operand in this device's memory, well formed. */
export function assertTiles(device: Device, name: string, scaled: ScaledTensor): void {
  assertScaled(name, device.memory, scaled);
  assertOperand(device, `${name} codes`, scaled.codes);
  assertOperand(device, `${name} scales`, scaled.scales);
  assertRowGroups(device, name, scaled);
}

/** The slots of a scale rule. */
export function ruleSlots(name: string, { amaxMin, powerOfTwo }: TileScaleRule): readonly number[] {
  const least = Math.fround(amaxMin);
  assert(least > 0 && least < Infinity, `${name}: amaxMin (${amaxMin}) must be a float32 > 0`);
  return [least, powerOfTwo ? 1 : 0];
}

function launchTiles(
  device: Device,
  key: string,
  numTasks: number,
  slots: readonly number[],
): void {
  if (numTasks > 0) device.launch(key, slots, numTasks);
}
