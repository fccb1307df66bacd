/**
 * @file Quantisation by tiles in x86-64 machine code: walks the patches of a launch and hands each
 * to a native function. What no function takes (tiles that halve a packed byte, sources whose
 * scales are not one a row) goes to the reference, which is exact to the same bit.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv, roundUp } from "../../base/integers.ts";
import type { NativeFunction } from "../../device/cpu/native.ts";
import type { ThreadContext } from "../../device/program.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import type { KernelImplementation } from "../kernel.ts";
import { slot } from "../kernel.ts";
import { type BandSlots, eachPatch, type Patch, readBandSlots } from "./bands.ts";
import { DEQUANTIZE_TILES_AT, type OpenDType, QUANTIZE_TILES_AT } from "./contract.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
  createReferenceRetile,
} from "./reference.ts";
import { readRule, readSource } from "./slots.ts";
import { emitDequantiseChunks, emitQuantiseChunks } from "./x64-chunk-tiles.ts";
import { CHUNK, CHUNK_CONSTANTS_BYTES, type ChunkFormat, chunkConstants } from "./x64-chunks.ts";
import {
  CONSTANTS_BYTES,
  codeConstants,
  floatBits,
  type StoredDType,
  storedBytes,
} from "./x64-codes.ts";
import { TILES_AT as AT, emitDequantise, emitQuantise, type TileDirection } from "./x64-tiles.ts";

export const X64_QUANTIZE_TILES: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [OpenDType, ScaledFormat];
    const runner = createTileRunner({ source: from, target: to, emit: emitQuantise }, context);
    const otherwise = createReferenceQuantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!hasWholeBytes(to, grid)) return otherwise(slots, firstTask, endTask);
      const open = readOpen(slots, from, QUANTIZE_TILES_AT);
      const run = runner(grid, {
        ...ruleArguments(slots),
        xRowBytes: open.rowBytes,
        outRowBytes: grid.codesRowStride,
      });
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        const x = openOffset(patch, open, from);
        const out = codesOffset(patch, grid, to);
        runPatch(run, patch, { x, out, scales: scalesOffset(patch, grid) });
      });
    };
  },
};

export const X64_DEQUANTIZE_TILES: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, OpenDType];
    const runner = createTileRunner({ source: from, target: to, emit: emitDequantise }, context);
    const otherwise = createReferenceDequantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!hasWholeBytes(from, grid)) return otherwise(slots, firstTask, endTask);
      const open = readOpen(slots, to, DEQUANTIZE_TILES_AT);
      const run = runner(grid, { xRowBytes: grid.codesRowStride, outRowBytes: open.rowBytes });
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        const out = openOffset(patch, open, to);
        const x = codesOffset(patch, grid, from);
        runPatch(run, patch, { x, out, scales: scalesOffset(patch, grid) });
      });
    };
  },
};

export const X64_RETILE: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, ScaledFormat];
    const runner = createTileRunner({ source: from, target: to, emit: emitQuantise }, context);
    const otherwise = createReferenceRetile(variant, context);
    const opened = createOpenedRetile(to, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      const source = readSource(slots);
      if (!takesSource(from, source, grid)) return otherwise(slots, firstTask, endTask);
      if (from === "e5m6" && opened.takes(source, grid)) {
        return opened.run(slots, firstTask, endTask);
      }
      // Tiles as high as the matrix have one row of scales.
      const rowStride = source.tileRows === 1 ? source.scaleRowStride : 0;
      const holdsChunks = source.tileColumns % CHUNK === 0 || source.tileColumns >= source.columns;
      const run = runner(grid, {
        ...ruleArguments(slots),
        xTileColumns: source.tileColumns,
        xRowBytes: source.codesRowStride,
        xScaleRowBytes: 4 * rowStride,
        outRowBytes: grid.codesRowStride,
      });
      eachPatch(context.memory, grid, { firstTask, endTask, joinsRows: true }, (patch) => {
        const placesOf = (part: Patch): PatchPlaces => ({
          x: codesOffset(part, source, from),
          xScales: xScalesOffset(part, source, rowStride),
          out: codesOffset(part, grid, to),
          scales: scalesOffset(part, grid),
        });
        const beginsWhole = patch.firstColumn % source.tileColumns === 0;
        if (holdsChunks && beginsWhole && run.tryOrdinary(patch, placesOf(patch))) return;
        eachPart(patch, source.tileColumns, (part) => run.runAll(part, placesOf(part)));
      });
    };
  },
};

/** Behind what the functions keep in a thread's scratch. */
const OPENED_AT = 65536;

/**
 * Packed codes become tiles of one column by way of f32 in the thread's scratch: each is unpacked
 * once, and what follows goes by chunks. The same bits: values are codes times scales in f32
 * anyway.
 */
function createOpenedRetile(to: ScaledFormat, context: ThreadContext) {
  const { scratch, memory } = context;
  const opening = { source: "e5m6", target: "f32", emit: emitDequantise } as const;
  const open = createTileRunner(opening, context);
  const close = createTileRunner({ source: "f32", target: to, emit: emitQuantise }, context);
  const place = scratch.byteOffset + OPENED_AT;
  return {
    takes(source: BandSlots, { tileRows, tileColumns, columnsPerTask, columns }: BandSlots) {
      const startsTiles = columnsPerTask >= columns || columnsPerTask % source.tileColumns === 0;
      const bytes = storedBytes("f32", tileRows * columnsPerTask);
      const fits = OPENED_AT + bytes <= scratch.byteLength;
      return tileColumns === 1 && source.tileRows === 1 && startsTiles && fits;
    },
    run(slots: Float64Array, firstTask: number, endTask: number): void {
      const grid = readBandSlots(slots);
      const source = readSource(slots);
      eachPatch(memory, grid, { firstTask, endTask }, (patch) => {
        const rowBytes = storedBytes("f32", patch.endColumn - patch.firstColumn);
        const rows = { ...patch, band: patch.firstRow };
        runPatch(open(source, { xRowBytes: source.codesRowStride, outRowBytes: rowBytes }), rows, {
          x: codesOffset(rows, source, "e5m6"),
          out: place,
          scales: scalesOffset(rows, source),
        });
        const rule = ruleArguments(slots);
        const shared = { ...rule, xRowBytes: rowBytes, outRowBytes: grid.codesRowStride };
        runPatch(close(grid, shared), patch, {
          x: place,
          out: codesOffset(patch, grid, to),
          scales: scalesOffset(patch, grid),
        });
      });
    },
  };
}

function refusalOf(variant: string, context: ThreadContext): string | null {
  if (context.native === null) return "native code is off or impossible here";
  const packs = variant.includes("e5m6") && !context.native.features.avx512Vbmi;
  return packs ? "packed codes need AVX512_VBMI" : null;
}

/** Arguments of a native function that all patches of a launch share. */
interface SharedArguments {
  readonly xRowBytes: number;
  readonly outRowBytes: number;
  /** Of a scaled source: from one row's scale to the next. */
  readonly xScaleRowBytes?: number;
  readonly xTileColumns?: number;
  /** The scale rule; of no meaning where codes are only read. */
  readonly amaxMinBits?: number;
  readonly powerOfTwo?: number;
}

/** Where a patch stands: byte offsets. */
interface PatchPlaces {
  readonly x: number;
  readonly out: number;
  readonly scales: number;
  readonly xScales?: number;
}

/** Runs patches of a launch. */
interface PatchRunner {
  /** False if something in the patch was not ordinary: what was written is to be written again. */
  tryOrdinary(patch: Patch, places: PatchPlaces): boolean;
  /** The same of any patch within one column of the source's tiles. */
  runAll(patch: Patch, places: PatchPlaces): void;
}

/** Prepares a launch. */
type TileRunner = (grid: BandSlots, shared: SharedArguments) => PatchRunner;

function runPatch(runner: PatchRunner, patch: Patch, places: PatchPlaces): void {
  if (!runner.tryOrdinary(patch, places)) runner.runAll(patch, places);
}

/** Where the constants of chunks stand, behind those of the other functions. */
const CHUNK_CONSTANTS_AT = roundUp(CONSTANTS_BYTES, 64);
/** Elements whose scales are found before their codes: they stay in the nearest cache. */
const BLOCK_ELEMENTS = 4096;

/** A native function that takes ordinary numbers alone, if there is one. */
function emitChunks(
  { source, target }: { readonly source: StoredDType; readonly target: StoredDType },
  direction: TileDirection,
): Uint8Array | null {
  const isCodes = (dtype: StoredDType): dtype is ChunkFormat =>
    dtype === "e4m3" || dtype === "e5m2";
  if (isCodes(source) && target === "f32" && direction === "along") {
    return emitDequantiseChunks(source);
  }
  if (source === "e5m6" || !isCodes(target)) return null;
  if (isCodes(source) && direction === "along") return null;
  return emitQuantiseChunks({ source, target, direction });
}

/** The native functions of a kernel, made when they are first needed, behind one call. */
function createTileRunner(
  kernel: {
    readonly source: StoredDType;
    readonly target: StoredDType;
    readonly emit: typeof emitQuantise;
  },
  { native, memory, argumentBlock, scratch }: ThreadContext,
): TileRunner {
  assert(native !== null, "x64 code needs a native runtime");
  const { source, target, emit } = kernel;
  const functions = new Map<TileDirection, TileFunctions>();
  const functionsFor = (direction: TileDirection): TileFunctions => {
    const known = functions.get(direction);
    if (known !== undefined) return known;
    const chunks = native.features.avx512Vbmi ? emitChunks(kernel, direction) : null;
    const made = {
      all: native.load(emit({ source, target, direction })),
      ordinary: chunks === null ? null : native.load(chunks),
    };
    functions.set(direction, made);
    return made;
  };
  const { byteOffset, byteLength } = argumentBlock;
  const args = new Float64Array(memory.wasm.buffer, byteOffset, byteLength / 8);
  const constants = constantsOf(source);
  assert(scratch.byteLength >= constants.byteLength, "tiles need scratch for their constants");
  const base = memory.baseAddress;
  return (grid, shared) => {
    const { all, ordinary } = functionsFor(grid.tileColumns === 1 ? "across" : "along");
    // One-row bands of a patch are joined: its rows are its bands.
    const isJoined = grid.tileRows === 1;
    memory.u8.set(constants, scratch.byteOffset);
    args[AT.constants] = base + scratch.byteOffset;
    args[AT.chunkConstants] = base + scratch.byteOffset + CHUNK_CONSTANTS_AT;
    args[AT.tileColumns] = Math.min(grid.tileColumns, grid.columns);
    args[AT.scaleRowBytes] = 4 * grid.scaleRowStride;
    args[AT.xRowBytes] = shared.xRowBytes;
    args[AT.outRowBytes] = shared.outRowBytes;
    args[AT.xScaleRowBytes] = shared.xScaleRowBytes ?? 0;
    args[AT.amaxMinBits] = shared.amaxMinBits ?? 0;
    args[AT.powerOfTwo] = shared.powerOfTwo ?? 0;
    args[AT.xTileColumns] = shared.xTileColumns ?? 0;
    const setPatch = (patch: Patch, { x, out, scales, xScales = -base }: PatchPlaces): void => {
      const rows = patch.endRow - patch.firstRow;
      const columns = patch.endColumn - patch.firstColumn;
      args[AT.bands] = isJoined ? rows : 1;
      args[AT.bandRows] = isJoined ? 1 : rows;
      args[AT.bandsPerBlock] = isJoined ? ceilDiv(BLOCK_ELEMENTS, columns) : 1;
      args[AT.columns] = columns;
      args[AT.x] = base + x;
      args[AT.out] = base + out;
      args[AT.scales] = base + scales;
      args[AT.xScales] = base + xScales;
    };
    return {
      tryOrdinary(patch, places): boolean {
        if (ordinary === null) return false;
        setPatch(patch, places);
        args[AT.refused] = 0;
        ordinary.call(base + byteOffset, 0, 0, base);
        return args[AT.refused] === 0;
      },
      runAll(patch, places): void {
        setPatch(patch, places);
        all.call(base + byteOffset, 0, 0, base);
      },
    };
  };
}

/** Those of both kinds of functions. */
function constantsOf(source: StoredDType): Uint8Array {
  const bytes = new Uint8Array(CHUNK_CONSTANTS_AT + CHUNK_CONSTANTS_BYTES);
  bytes.set(codeConstants(source));
  if (source !== "e5m6") bytes.set(chunkConstants(source), CHUNK_CONSTANTS_AT);
  return bytes;
}

/** A function that takes everything, and one that may refuse. */
interface TileFunctions {
  readonly all: NativeFunction;
  readonly ordinary: NativeFunction | null;
}

/** Whether no tile begins in the middle of a byte of packed codes. */
function hasWholeBytes(format: ScaledFormat, { tileColumns, columns }: BandSlots): boolean {
  return format !== "e5m6" || tileColumns % 2 === 0 || tileColumns >= columns;
}

/** Whether a source has one scale a row, or one for all, within each of the output's tiles. */
function takesSource(format: ScaledFormat, source: BandSlots, grid: BandSlots): boolean {
  const holdsTiles =
    source.tileColumns >= grid.columns || source.tileColumns % grid.tileColumns === 0;
  const isOneBand = source.tileRows >= source.rows && source.groupRows === 0;
  // Packed codes are read tile by tile of the output; tiles of one column go sixteen at a time.
  const isWhole = grid.tileColumns === 1 || hasWholeBytes(format, grid);
  const isSourceWhole = hasWholeBytes(format, source);
  return (source.tileRows === 1 || isOneBand) && holdsTiles && isSourceWhole && isWhole;
}

/** Visit the parts of a patch between the columns where another tiling begins. */
function eachPart(patch: Patch, tileColumns: number, visit: (part: Patch) => void): void {
  for (let first = patch.firstColumn; first < patch.endColumn; ) {
    const end = Math.min(patch.endColumn, (floorDiv(first, tileColumns) + 1) * tileColumns);
    visit({ ...patch, firstColumn: first, endColumn: end });
    first = end;
  }
}

interface OpenOperand {
  readonly offset: number;
  readonly rowBytes: number;
}

function readOpen(
  slots: Float64Array,
  dtype: OpenDType,
  at: { readonly openOffset: number; readonly openRowStride: number },
): OpenOperand {
  return {
    offset: slot(slots, at.openOffset),
    rowBytes: storedBytes(dtype, slot(slots, at.openRowStride)),
  };
}

/** The scale rule, as native functions take it. */
function ruleArguments(slots: Float64Array): { amaxMinBits: number; powerOfTwo: number } {
  const { amaxMin, powerOfTwo } = readRule(slots);
  return { amaxMinBits: floatBits(amaxMin), powerOfTwo: powerOfTwo ? 1 : 0 };
}

/** Where a patch begins in the codes of a scaled matrix, in its scales, in an open matrix. */
function codesOffset(
  { firstRow, firstColumn }: Patch,
  { codesOffset, codesRowStride }: BandSlots,
  format: ScaledFormat,
): number {
  return codesOffset + firstRow * codesRowStride + storedBytes(format, firstColumn);
}

function scalesOffset({ band, firstColumn }: Patch, grid: BandSlots): number {
  const tile = floorDiv(firstColumn, grid.tileColumns);
  return grid.scalesOffset + 4 * (band * grid.scaleRowStride + tile);
}

function xScalesOffset({ firstRow, firstColumn }: Patch, source: BandSlots, rowStride: number) {
  const tile = floorDiv(firstColumn, source.tileColumns);
  return source.scalesOffset + 4 * (firstRow * rowStride + tile);
}

function openOffset(
  { firstRow, firstColumn }: Patch,
  { offset, rowBytes }: OpenOperand,
  dtype: OpenDType,
): number {
  return offset + firstRow * rowBytes + storedBytes(dtype, firstColumn);
}
