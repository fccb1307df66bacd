/**
 * @file Quantisation by tiles in WebAssembly: walks the patches of a launch and runs row programs
 * (programs.ts) over their tiles.
 *
 * Tiles of one row take their scales as they go. Of higher ones the amax of every column comes
 * first, then the scales, then the codes. E5M6 is packed and unpacked here, through words in the
 * scratch. What has no place in the scratch, and packed tiles that begin within a byte, goes to the
 * reference, which is exact to the same bit.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import type { ThreadContext } from "../../device/program.ts";
import { packE5m6, packedE5m6Bytes, unpackE5m6 } from "../../numerics/e5m6.ts";
import { powerOfTwoNotBelow } from "../../numerics/scales.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import { type KernelImplementation, slot } from "../kernel.ts";
import { type RowRunner, wasmRowRunner, wasmRows } from "../row-runner.ts";
import { type BandSlots, eachPatch, type Patch, readBandSlots, scaleRowAt } from "./bands.ts";
import {
  DEQUANTIZE_TILES_AT,
  type OpenDType,
  QUANTIZE_TILES_AT,
  type TileScaleRule,
} from "./contract.ts";
import {
  columnAmaxProgram,
  decodeAcrossProgram,
  decodeAlongProgram,
  encodeAcrossProgram,
  quantizeAlongProgram,
} from "./programs.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
  createReferenceRetile,
  FORMATS,
} from "./reference.ts";
import { readRule, readSource } from "./slots.ts";

export const WASM_QUANTIZE_TILES: KernelImplementation = {
  target: "wasm",
  refusal: (variant, context) => wasmRows(() => columnAmaxProgram("f32")).refusal(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [OpenDType, ScaledFormat];
    const quantise = new Quantiser(context, from, to);
    const otherwise = createReferenceQuantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!fits(context, grid, [to])) return otherwise(slots, firstTask, endTask);
      const x = readOpen(slots, from, QUANTIZE_TILES_AT.openOffset);
      const rule = readRule(slots);
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        quantise.patch(grid, patch, placeIn(x, patch), rule);
      });
    };
  },
};

export const WASM_DEQUANTIZE_TILES: KernelImplementation = {
  target: "wasm",
  refusal: WASM_QUANTIZE_TILES.refusal,
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, OpenDType];
    const dequantise = new Dequantiser(context, from, to);
    const otherwise = createReferenceDequantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!fits(context, grid, [from])) return otherwise(slots, firstTask, endTask);
      const out = readOpen(slots, to, DEQUANTIZE_TILES_AT.openOffset);
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        dequantise.rows(grid, patch, placeIn(out, patch), () => patch.band);
      });
    };
  },
};

export const WASM_RETILE: KernelImplementation = {
  target: "wasm",
  refusal: WASM_QUANTIZE_TILES.refusal,
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, ScaledFormat];
    const dequantise = new Dequantiser(context, from, "f32");
    const quantise = new Quantiser(context, "f32", to);
    const otherwise = createReferenceRetile(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      const source = { ...readSource(slots), numGroups: 0 };
      const takes = fits(context, grid, [to], true) && fits(context, source, [from]);
      if (!takes) return otherwise(slots, firstTask, endTask);
      const rule = readRule(slots);
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        const values = { ...layOut(context, grid).values, bytes: 4 };
        dequantise.rows(source, patch, values, (row) => scaleRowAt(source, row));
        quantise.patch(grid, patch, values, rule);
      });
    };
  },
};

/** Rows of a matrix: the byte offset of the first, elements from row to row, bytes an element. */
interface Place {
  readonly offset: number;
  readonly stride: number;
  readonly bytes: number;
}

/** Rows of a place from some row and column on. */
function part({ offset, stride, bytes }: Place, row: number, column: number): Place {
  return { offset: offset + (row * stride + column) * bytes, stride, bytes };
}

function placeIn(matrix: Place, { firstRow, firstColumn }: Patch): Place {
  return part(matrix, firstRow, firstColumn);
}

/** One vector of scales and of amax, words of E5M6 and values of a patch, in the scratch. */
function layOut({ scratch }: ThreadContext, grid: BandSlots) {
  const vectorBytes = grid.columns * 4;
  const scales = scratch.byteOffset;
  const amax = scales + vectorBytes;
  const stride = grid.columnsPerTask;
  const words = { offset: amax + vectorBytes, stride, bytes: 2 };
  const count = patchRows(grid) * stride;
  const values = { offset: words.offset + 4 * Math.ceil(count / 2), stride };
  const end = values.offset + 4 * count - scratch.byteOffset;
  return { scales, amax, words, values, bytes: { vectors: 2 * vectorBytes, all: end } };
}

/** The most rows of a patch. */
function patchRows({ tileRows, bandsPerTask, rows }: BandSlots): number {
  return Math.min(rows, tileRows === 1 ? bandsPerTask : tileRows);
}

/** Whether a launch's patches fit the scratch, and no packed tile begins within a byte. */
function fits(
  context: ThreadContext,
  grid: BandSlots,
  formats: readonly ScaledFormat[],
  needsValues = false,
): boolean {
  const packs = formats.includes("e5m6");
  const { tileColumns, columns } = grid;
  if (packs && tileColumns % 2 !== 0 && tileColumns < columns) return false;
  const { bytes } = layOut(context, grid);
  return (packs || needsValues ? bytes.all : bytes.vectors) <= context.scratch.byteLength;
}

/** Writes the codes and scales of patches. */
class Quantiser {
  readonly #context: ThreadContext;
  readonly #to: ScaledFormat;
  readonly #along: RowRunner;
  readonly #amax: RowRunner;
  readonly #across: RowRunner;

  constructor(context: ThreadContext, from: OpenDType, to: ScaledFormat) {
    this.#context = context;
    this.#to = to;
    this.#along = wasmRowRunner(() => quantizeAlongProgram(from, to), context);
    this.#amax = wasmRowRunner(() => columnAmaxProgram(from), context);
    this.#across = wasmRowRunner(() => encodeAcrossProgram(from, to), context);
  }

  /** `x` is where the patch begins. */
  patch(grid: BandSlots, patch: Patch, x: Place, rule: TileScaleRule): void {
    const isPacked = this.#to === "e5m6";
    const codes = isPacked ? layOut(this.#context, grid).words : codesOf(grid, patch);
    if (grid.tileRows === 1) this.#rows(grid, patch, x, codes, rule);
    else this.#tiles(grid, patch, x, codes, rule);
    if (isPacked) forPackedRows(this.#context, grid, patch, codes, packE5m6);
  }

  /** Tiles of one row: a column of tiles at a time. */
  #rows(grid: BandSlots, patch: Patch, x: Place, codes: Place, rule: TileScaleRule): void {
    const numRows = patch.endRow - patch.firstRow;
    const scalars = [rule.amaxMin, rule.powerOfTwo ? 1 : 0];
    for (const { first, count, scale } of tilesOf(grid, patch, patch.band)) {
      const [from, to] = [part(x, 0, first), part(codes, 0, first)];
      const operands = [
        [from.offset, from.stride],
        [scale, grid.scaleRowStride],
        [to.offset, to.stride],
      ] as const;
      this.#along(numRows, count, operands, scalars);
    }
  }

  #tiles(grid: BandSlots, patch: Patch, x: Place, codes: Place, rule: TileScaleRule): void {
    const numRows = patch.endRow - patch.firstRow;
    const numColumns = patch.endColumn - patch.firstColumn;
    const { scales, amax } = layOut(this.#context, grid);
    const { f32 } = this.#context.memory;
    const [magnitudes, factors] = [amax / 4, scales / 4];
    f32.fill(0, magnitudes, magnitudes + numColumns);
    this.#amax(numRows, numColumns, [
      [x.offset, x.stride],
      [amax, 0],
    ]);
    const { largest } = FORMATS[this.#to];
    for (const { first, count, scale } of tilesOf(grid, patch, patch.band)) {
      let most = rule.amaxMin;
      for (let column = first; column < first + count; column++) {
        most = Math.max(most, f32[magnitudes + column]!);
      }
      const exact = Math.fround(most / largest);
      const chosen = rule.powerOfTwo ? powerOfTwoNotBelow(exact) : exact;
      f32[scale / 4] = chosen;
      f32.fill(chosen, factors + first, factors + first + count);
    }
    this.#across(numRows, numColumns, [
      [x.offset, x.stride],
      [scales, 0],
      [codes.offset, codes.stride],
    ]);
  }
}

/** Writes the values of patches. */
class Dequantiser {
  readonly #context: ThreadContext;
  readonly #from: ScaledFormat;
  readonly #along: RowRunner;
  readonly #across: RowRunner;

  constructor(context: ThreadContext, from: ScaledFormat, to: OpenDType) {
    this.#context = context;
    this.#from = from;
    this.#along = wasmRowRunner(() => decodeAlongProgram(from, to), context);
    this.#across = wasmRowRunner(() => decodeAcrossProgram(from, to), context);
  }

  /** The rows and columns of a patch, which may be of another tiling, to `out`. */
  rows(grid: BandSlots, patch: Patch, out: Place, scaleRowOf: (row: number) => number): void {
    const isPacked = this.#from === "e5m6";
    const codes = isPacked ? layOut(this.#context, grid).words : codesOf(grid, patch);
    if (isPacked) forPackedRows(this.#context, grid, patch, codes, unpackE5m6);
    if (grid.tileRows === 1) {
      const numRows = patch.endRow - patch.firstRow;
      const scaleRow = grid.numGroups > 0 ? patch.band : patch.firstRow;
      for (const { first, count, scale } of tilesOf(grid, patch, scaleRow)) {
        const [from, to] = [part(codes, 0, first), part(out, 0, first)];
        this.#along(numRows, count, [
          [from.offset, from.stride],
          [scale, grid.scaleRowStride],
          [to.offset, to.stride],
        ]);
      }
      return;
    }
    for (let row = patch.firstRow; row < patch.endRow; ) {
      const scaleRow = scaleRowOf(row);
      let end = row + 1;
      while (end < patch.endRow && scaleRowOf(end) === scaleRow) end++;
      const at = row - patch.firstRow;
      this.#band(grid, patch, end - row, scaleRow, part(codes, at, 0), part(out, at, 0));
      row = end;
    }
  }

  /** Rows that share a row of scales. */
  #band(
    grid: BandSlots,
    patch: Patch,
    numRows: number,
    scaleRow: number,
    codes: Place,
    out: Place,
  ): void {
    const { scales } = layOut(this.#context, grid);
    const { f32 } = this.#context.memory;
    for (const { first, count, scale } of tilesOf(grid, patch, scaleRow)) {
      f32.fill(f32[scale / 4]!, scales / 4 + first, scales / 4 + first + count);
    }
    this.#across(numRows, patch.endColumn - patch.firstColumn, [
      [codes.offset, codes.stride],
      [scales, 0],
      [out.offset, out.stride],
    ]);
  }
}

/** Where a patch's codes begin; not for packed ones. */
function codesOf({ codesOffset, codesRowStride }: BandSlots, patch: Patch): Place {
  return placeIn({ offset: codesOffset, stride: codesRowStride, bytes: 1 }, patch);
}

/** The tiles of a patch, cut to it: columns counted from its own first, and where the scale is. */
function* tilesOf(
  grid: BandSlots,
  { firstColumn, endColumn }: Patch,
  scaleRow: number,
): Generator<{ readonly first: number; readonly count: number; readonly scale: number }> {
  const { tileColumns, scalesOffset, scaleRowStride } = grid;
  for (let column = firstColumn; column < endColumn; ) {
    const tile = floorDiv(column, tileColumns);
    const end = Math.min(endColumn, (tile + 1) * tileColumns);
    const scale = scalesOffset + 4 * (scaleRow * scaleRowStride + tile);
    yield { first: column - firstColumn, count: end - column, scale };
    column = end;
  }
}

/** `convert` (packE5m6, or its inverse) between the words of each row and its packed bytes. */
function forPackedRows(
  { memory }: ThreadContext,
  { codesOffset, codesRowStride }: BandSlots,
  { firstRow, endRow, firstColumn, endColumn }: Patch,
  words: Place,
  convert: typeof packE5m6 | typeof unpackE5m6,
): void {
  const count = endColumn - firstColumn;
  assert(firstColumn % 2 === 0, "packed codes of a patch begin with a byte");
  for (let row = firstRow; row < endRow; row++) {
    const word = (words.offset + 2 * (row - firstRow) * words.stride) / 2;
    const byte = codesOffset + row * codesRowStride + packedE5m6Bytes(firstColumn);
    const unpacked = memory.u16.subarray(word, word + count);
    const packed = memory.u8.subarray(byte, byte + packedE5m6Bytes(count));
    if (convert === packE5m6) packE5m6(unpacked, packed);
    else unpackE5m6(packed, unpacked);
  }
}

function readOpen(slots: Float64Array, dtype: OpenDType, at: number): Place {
  return { offset: slot(slots, at), stride: slot(slots, at + 1), bytes: DTYPE_BYTES[dtype] };
}
