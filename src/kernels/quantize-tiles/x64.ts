/**
 * @file Quantisation by tiles in x86-64 machine code: walks the patches of a launch and hands each
 * to a native function. What no function takes (tiles that halve a packed byte, sources whose
 * scales are not one a row) goes to the reference, which is exact to the same bit.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import type { ThreadContext } from "../../device/program.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import type { KernelImplementation } from "../kernel.ts";
import { slot } from "../kernel.ts";
import { type BandSlots, type Patch, patchesOf, readBandSlots } from "./bands.ts";
import { DEQUANTIZE_TILES_AT, type OpenDType, QUANTIZE_TILES_AT } from "./contract.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
  createReferenceRetile,
} from "./reference.ts";
import { readRule, readSource } from "./slots.ts";
import { CONSTANTS_BYTES, codeConstants, type StoredDType, storedBytes } from "./x64-codes.ts";
import { TILES_AT as AT, emitDequantise, emitQuantise, type TileDirection } from "./x64-tiles.ts";

export const X64_QUANTIZE_TILES: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [OpenDType, ScaledFormat];
    const run = createTileRunner({ source: from, target: to, emit: emitQuantise }, context);
    const otherwise = createReferenceQuantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!hasWholeBytes(to, grid)) return otherwise(slots, firstTask, endTask);
      const open = readOpen(slots, from, QUANTIZE_TILES_AT);
      const rule = ruleArguments(slots);
      for (const patch of patchesOf(context.memory, grid, firstTask, endTask, true)) {
        const at = placesOf(patch, grid, to, open, from);
        run(grid, patch, { ...rule, ...at.scaled, x: at.open, xRowBytes: open.rowBytes });
      }
    };
  },
};

export const X64_DEQUANTIZE_TILES: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, OpenDType];
    const run = createTileRunner({ source: from, target: to, emit: emitDequantise }, context);
    const otherwise = createReferenceDequantizeTiles(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      if (!hasWholeBytes(from, grid)) return otherwise(slots, firstTask, endTask);
      const open = readOpen(slots, to, DEQUANTIZE_TILES_AT);
      for (const patch of patchesOf(context.memory, grid, firstTask, endTask, true)) {
        const at = placesOf(patch, grid, from, open, to);
        const { out: x, outRowBytes: xRowBytes, scales, scaleRowBytes } = at.scaled;
        const target = { out: at.open, outRowBytes: open.rowBytes };
        run(grid, patch, { ...target, x, xRowBytes, scales, scaleRowBytes });
      }
    };
  },
};

export const X64_RETILE: KernelImplementation = {
  target: "x64",
  refusal: (variant, context) => refusalOf(variant, context),
  create: (variant, context) => {
    const [from, to] = variant.split(".") as [ScaledFormat, ScaledFormat];
    const run = createTileRunner({ source: from, target: to, emit: emitQuantise }, context);
    const otherwise = createReferenceRetile(variant, context);
    return (slots, firstTask, endTask) => {
      const grid = readBandSlots(slots);
      const source = readSource(slots);
      if (!takesSource(from, source, grid)) return otherwise(slots, firstTask, endTask);
      const rule = ruleArguments(slots);
      // Tiles as high as the matrix have one row of scales.
      const rowStride = source.tileRows === 1 ? source.scaleRowStride : 0;
      for (const patch of patchesOf(context.memory, grid, firstTask, endTask, true)) {
        for (const part of splitAtTiles(patch, source.tileColumns)) {
          const tile = floorDiv(part.firstColumn, source.tileColumns);
          run(grid, part, {
            ...rule,
            ...scaledPlaces(part, grid, to),
            x:
              source.codesOffset +
              part.firstRow * source.codesRowStride +
              storedBytes(from, part.firstColumn),
            xRowBytes: source.codesRowStride,
            xScales: source.scalesOffset + 4 * (part.firstRow * rowStride + tile),
            xScaleRowBytes: 4 * rowStride,
          });
        }
      }
    };
  },
};

function refusalOf(variant: string, context: ThreadContext): string | null {
  if (context.native === null) return "native code is off or impossible here";
  const packs = variant.includes("e5m6") && !context.native.features.avx512Vbmi;
  return packs ? "packed codes need AVX512_VBMI" : null;
}

/** Arguments of a native function that differ from patch to patch; addresses as byte offsets. */
type Arguments = Partial<Record<keyof typeof AT, number>>;
const ADDRESSES: readonly string[] = ["x", "xScales", "out", "scales"];

type TileRunner = (grid: BandSlots, patch: Patch, values: Arguments) => void;

/** Both native functions of a kernel, made when they are first needed, behind one call. */
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
  const functions = new Map<TileDirection, ReturnType<typeof native.load>>();
  const functionFor = (direction: TileDirection): ReturnType<typeof native.load> => {
    const made = functions.get(direction) ?? native.load(emit({ source, target, direction }));
    functions.set(direction, made);
    return made;
  };
  const { byteOffset, byteLength } = argumentBlock;
  const args = new Float64Array(memory.wasm.buffer, byteOffset, byteLength / 8);
  const constants = codeConstants(source);
  assert(scratch.byteLength >= CONSTANTS_BYTES, "tiles need scratch for their constants");
  return (grid, patch, values) => {
    // One-row bands of a patch are joined: its rows are its bands.
    const rows = patch.endRow - patch.firstRow;
    const isJoined = grid.tileRows === 1;
    memory.u8.set(constants, scratch.byteOffset);
    args[AT.constants] = memory.baseAddress + scratch.byteOffset;
    args[AT.bands] = isJoined ? rows : 1;
    args[AT.bandRows] = isJoined ? 1 : rows;
    args[AT.columns] = patch.endColumn - patch.firstColumn;
    args[AT.tileColumns] = Math.min(grid.tileColumns, grid.columns);
    args[AT.xScales] = 0;
    args[AT.xScaleRowBytes] = 0;
    for (const [name, value] of Object.entries(values)) {
      const at = AT[name as keyof typeof AT];
      args[at] = ADDRESSES.includes(name) ? memory.baseAddress + value : value;
    }
    const direction = grid.tileColumns === 1 ? "across" : "along";
    functionFor(direction).call(memory.baseAddress + byteOffset, 0, 0, memory.baseAddress);
  };
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

/** A patch cut where the columns of another tiling begin. */
function* splitAtTiles(patch: Patch, tileColumns: number): Generator<Patch> {
  for (let first = patch.firstColumn; first < patch.endColumn; ) {
    const end = Math.min(patch.endColumn, (floorDiv(first, tileColumns) + 1) * tileColumns);
    yield { ...patch, firstColumn: first, endColumn: end };
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

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The scale rule, as native functions take it. */
function ruleArguments(slots: Float64Array): Arguments {
  const { amaxMin, powerOfTwo } = readRule(slots);
  float[0] = amaxMin;
  return { amaxMinBits: bits[0]!, powerOfTwo: powerOfTwo ? 1 : 0 };
}

/** Where a patch's codes and scales stand. */
function scaledPlaces(
  { band, firstRow, firstColumn }: Patch,
  grid: BandSlots,
  format: ScaledFormat,
): { out: number; outRowBytes: number; scales: number; scaleRowBytes: number } {
  const tile = floorDiv(firstColumn, grid.tileColumns);
  return {
    out: grid.codesOffset + firstRow * grid.codesRowStride + storedBytes(format, firstColumn),
    outRowBytes: grid.codesRowStride,
    scales: grid.scalesOffset + 4 * (band * grid.scaleRowStride + tile),
    scaleRowBytes: 4 * grid.scaleRowStride,
  };
}

/** The same, and where the patch stands in the open operand. */
function placesOf(
  patch: Patch,
  grid: BandSlots,
  format: ScaledFormat,
  open: OpenOperand,
  dtype: OpenDType,
): { scaled: ReturnType<typeof scaledPlaces>; open: number } {
  const first = patch.firstRow * open.rowBytes + storedBytes(dtype, patch.firstColumn);
  return { scaled: scaledPlaces(patch, grid, format), open: open.offset + first };
}
