/**
 * @file Quantisation with one scale a patch: 1×128 tiles of activations, 128×128 blocks of weights.
 *
 *     scale_P = max(amax_P, amaxMin) / largest     largest = 448 for E4M3, 65024 for E5M6
 *     code    = format(value / scale_P)            a float32 division, then one rounding
 *     value   ≈ code × scale_P                     a scale dequantises (`weight_scale_inv` on disk)
 *
 * A power-of-two scale is the smallest power of two not below that quotient; such a scale divides
 * without rounding. Matrices are row-major and contiguous; the last patch of a row or column may be
 * smaller than the others.
 *
 * Nothing is lost in silence: a NaN makes its own code NaN and no other; an infinity makes its
 * patch's scale infinite and thereby every dequantised value of the patch NaN.
 *
 * Source: DeepSeek-V3 report §3.3.2 (online scales, no history); the clamp is that of the released
 * inference code.
 */
import { assert } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import { type Codes, encodeBits, type SmallFloat } from "./small-float.ts";

/** Width of a tile and side of a block; also the promotion interval of the FP8 products. */
export const SCALE_BLOCK = 128;

/** Activations and gradients: a smaller amax counts as this one. */
export const ACTIVATION_AMAX_MIN: number = Math.fround(1e-4);

/** Weights: only keeps the scale of an all-zero block a normal float32. */
export const WEIGHT_AMAX_MIN: number = 448 * 2 ** -126;

/** A matrix cut into patches that share a scale; scales are row-major [scaleRows, scaleColumns]. */
export interface PatchGrid {
  readonly rows: number;
  readonly columns: number;
  readonly patchRows: number;
  readonly patchColumns: number;
  readonly scaleRows: number;
  readonly scaleColumns: number;
}

function patchGrid(
  matrix: { rows: number; columns: number },
  patch: { rows: number; columns: number },
): PatchGrid {
  const { rows, columns } = matrix;
  assert(Number.isInteger(rows) && rows >= 0, `rows (${rows}) must be a whole number >= 0`);
  assert(
    Number.isInteger(columns) && columns >= 0,
    `columns (${columns}) must be a whole number >= 0`,
  );
  return {
    rows,
    columns,
    patchRows: patch.rows,
    patchColumns: patch.columns,
    scaleRows: ceilDiv(rows, patch.rows),
    scaleColumns: ceilDiv(columns, patch.columns),
  };
}

/** 1×128 tiles: one scale for 128 channels of one token. */
export function tileGrid(rows: number, columns: number): PatchGrid {
  return patchGrid({ rows, columns }, { rows: 1, columns: SCALE_BLOCK });
}

/** 128×1 tiles: one scale for 128 tokens of one channel, for products that contract over tokens. */
export function columnTileGrid(rows: number, columns: number): PatchGrid {
  return patchGrid({ rows, columns }, { rows: SCALE_BLOCK, columns: 1 });
}

/** 128×128 blocks: weights. */
export function blockGrid(rows: number, columns: number): PatchGrid {
  return patchGrid({ rows, columns }, { rows: SCALE_BLOCK, columns: SCALE_BLOCK });
}

/** Number of scales of a grid. */
export function numScales(grid: PatchGrid): number {
  return grid.scaleRows * grid.scaleColumns;
}

/** How a patch's scale follows from its amax. */
export interface ScaleRule {
  readonly format: SmallFloat;
  readonly amaxMin: number;
  readonly powerOfTwo: boolean;
}

/** A quantised matrix: `codes` as large as the matrix, one of `scales` for each patch. */
export interface Quantized {
  readonly codes: Codes;
  readonly scales: Float32Array;
}

/** The smallest power of two not below a positive normal float32; infinity stays infinite. */
export function powerOfTwoNotBelow(value: number): number {
  const float = new Float32Array([value]);
  const word = new Int32Array(float.buffer);
  if ((word[0]! & 0x7fffff) !== 0) word[0] = (word[0]! & 0x7f800000) + 0x800000;
  return float[0]!;
}

/** The scale of a patch whose largest magnitude is `amax`. */
export function scaleOfAmax(amax: number, rule: ScaleRule): number {
  const exact = Math.fround(Math.max(amax, rule.amaxMin) / rule.format.largest);
  return rule.powerOfTwo ? powerOfTwoNotBelow(exact) : exact;
}

function assertLength(name: string, array: ArrayLike<number>, length: number): void {
  assert(array.length === length, `${name} has ${array.length} elements, the grid needs ${length}`);
}

/** Row and column range of a patch in its matrix, and the index of its first element. */
interface Patch {
  readonly first: number;
  readonly numRows: number;
  readonly numColumns: number;
}

function patchAt(grid: PatchGrid, scaleRow: number, scaleColumn: number): Patch {
  const row = scaleRow * grid.patchRows;
  const column = scaleColumn * grid.patchColumns;
  return {
    first: row * grid.columns + column,
    numRows: Math.min(grid.patchRows, grid.rows - row),
    numColumns: Math.min(grid.patchColumns, grid.columns - column),
  };
}

function amaxOf(values: Float32Array, stride: number, patch: Patch): number {
  let amax = 0;
  for (let row = 0; row < patch.numRows; row++) {
    const start = patch.first + row * stride;
    for (let i = start; i < start + patch.numColumns; i++) {
      const magnitude = Math.abs(values[i]!);
      if (magnitude > amax) amax = magnitude;
    }
  }
  return amax;
}

/** The scales of a matrix, from the data itself. */
export function computeScales(
  values: Float32Array,
  grid: PatchGrid,
  rule: ScaleRule,
  out: Float32Array,
): void {
  assertLength("values", values, grid.rows * grid.columns);
  assertLength("scales", out, numScales(grid));
  for (let scaleRow = 0; scaleRow < grid.scaleRows; scaleRow++) {
    for (let scaleColumn = 0; scaleColumn < grid.scaleColumns; scaleColumn++) {
      const amax = amaxOf(values, grid.columns, patchAt(grid, scaleRow, scaleColumn));
      out[scaleRow * grid.scaleColumns + scaleColumn] = scaleOfAmax(amax, rule);
    }
  }
}

/** Quantise a matrix: scales from the data itself, then codes. */
export function quantize(
  values: Float32Array,
  grid: PatchGrid,
  rule: ScaleRule,
  out: Quantized,
): void {
  const { codes, scales } = out;
  assertLength("codes", codes, grid.rows * grid.columns);
  computeScales(values, grid, rule, scales);
  const quotient = new Float32Array(1);
  const quotientBits = new Int32Array(quotient.buffer);
  for (let scaleRow = 0; scaleRow < grid.scaleRows; scaleRow++) {
    for (let scaleColumn = 0; scaleColumn < grid.scaleColumns; scaleColumn++) {
      const patch = patchAt(grid, scaleRow, scaleColumn);
      const scale = scales[scaleRow * grid.scaleColumns + scaleColumn]!;
      for (let row = 0; row < patch.numRows; row++) {
        const start = patch.first + row * grid.columns;
        for (let i = start; i < start + patch.numColumns; i++) {
          quotient[0] = values[i]! / scale;
          codes[i] = encodeBits(rule.format, quotientBits[0]!);
        }
      }
    }
  }
}

/** Values of a quantised matrix: each code times its patch's scale, rounded to float32. */
export function dequantize(
  quantized: Quantized,
  grid: PatchGrid,
  format: SmallFloat,
  out: Float32Array,
): void {
  const { codes, scales } = quantized;
  const { values } = format;
  assertLength("codes", codes, grid.rows * grid.columns);
  assertLength("scales", scales, numScales(grid));
  assertLength("out", out, grid.rows * grid.columns);
  for (let scaleRow = 0; scaleRow < grid.scaleRows; scaleRow++) {
    for (let scaleColumn = 0; scaleColumn < grid.scaleColumns; scaleColumn++) {
      const patch = patchAt(grid, scaleRow, scaleColumn);
      const scale = scales[scaleRow * grid.scaleColumns + scaleColumn]!;
      for (let row = 0; row < patch.numRows; row++) {
        const start = patch.first + row * grid.columns;
        for (let i = start; i < start + patch.numColumns; i++) {
          out[i] = values[codes[i]!]! * scale;
        }
      }
    }
  }
}
