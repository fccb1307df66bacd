/**
 * @file Products of scaled operands in x86-64 machine code.
 *
 * The loops over cache blocks are those of matmul/x64.ts; a block of depth is a whole number of
 * pieces (a piece deeper than a block is cut, each part promoted by the same scales). Scales are
 * laid out beside the panels here: they are a 128th of the operands, or less.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv, roundUp } from "../../base/integers.ts";
import type { CpuFeatures } from "../../device/cpu/features.ts";
import type { ThreadContext } from "../../device/program.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { placeSlots } from "../matmul/x64.ts";
import { BLOCK_AT as AT } from "../matmul/x64-block.ts";
import {
  evenRows,
  type PreparedBlocks,
  prepareBlocks,
  SLICE_COLUMNS_MAX,
  zeroBlock,
} from "../matmul/x64-blocks.ts";
import type { X64Core } from "../matmul/x64-core.ts";
import { elementsPerWord } from "../matmul/x64-pack.ts";
import { WIDENING_BYTES, wideningConstants } from "../matmul/x64-widen.ts";
import type { ProductFormat } from "./contract.ts";
import type { ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";
import { scaledCore } from "./x64-core.ts";
import { scaledTileCore } from "./x64-tile-core.ts";

/** null if x64 code can multiply scaled operands here; otherwise the reason. */
export function x64ScaledRefusal(context: ThreadContext): string | null {
  return context.native === null ? "native code is off or impossible here" : null;
}

/** The block core in machine code, for one thread; it uses all of the thread's scratch. */
export function createX64ScaledMultiplier(
  transposition: Transposition,
  formats: readonly [a: ProductFormat, b: ProductFormat],
  context: ThreadContext,
): ScaledBlockMultiplier {
  const { native } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const core = chooseScaledCore(formats, native.features);
  return createScaledMultiplierOver(core, formats, transposition, context);
}

/** Tiles where there are any, else the widest products of vectors. */
function chooseScaledCore(
  [a, b]: readonly [a: ProductFormat, b: ProductFormat],
  { amxBf16, avx512Bf16 }: CpuFeatures,
): X64Core {
  if (amxBf16) return scaledTileCore(a, b, null);
  return scaledCore(a, b, avx512Bf16 ? "bf16" : "f32");
}

/** The same over a given core. */
export function createScaledMultiplierOver(
  core: X64Core,
  formats: readonly [a: ProductFormat, b: ProductFormat],
  transposition: Transposition,
  context: ThreadContext,
): ScaledBlockMultiplier {
  const blocks = prepareBlocks(core, transposition, context, context.scratch);
  const { slots, memory, depthBlock, sliceColumns } = blocks;
  const { maxRows, aFormat, bFormat } = core;
  const place = placeSlots(blocks, transposition);
  const perWord = elementsPerWord(aFormat.dtype);
  const scales = layOutScales(core, formats, transposition, blocks);
  return ({ a, b, outOffset, outRowStride, m, n, k, pieceDepth, accumulate }) => {
    const at = place({
      aOffset: a.codesOffset,
      aStride: a.rowStride,
      bOffset: b.codesOffset,
      bStride: b.rowStride,
      outOffset,
      outStride: outRowStride,
    });
    scales.a.begin();
    scales.b.begin();
    slots[AT.packsB] = 1;
    const depthOfPiece = Math.min(pieceDepth, depthBlock);
    // Pieces that do not fill words, or tiles, are packed one by one.
    const fillsUnits = depthOfPiece % (perWord * aFormat.depthUnit) === 0;
    const piecesMost = fillsUnits ? Math.min(PIECES_MAX, floorDiv(depthBlock, depthOfPiece)) : 1;
    slots[AT.pieceWords] = roundUp(ceilDiv(depthOfPiece, perWord), aFormat.depthUnit);
    if (k === 0 && !accumulate) zeroBlock(memory.f32, outOffset / 4, outRowStride, m, n);
    const rowBlock = evenRows(m, maxRows, aFormat.width);
    for (let d = 0; d < k; ) {
      // A deep piece is cut at its own end, not only at the ends of blocks.
      const pieceEnd = (floorDiv(d, pieceDepth) + 1) * pieceDepth;
      const end = Math.min(
        k,
        pieceDepth > depthBlock ? pieceEnd : k,
        d + piecesMost * depthOfPiece,
      );
      const part = { first: d, depth: depthOfPiece, count: ceilDiv(end - d, depthOfPiece) };
      slots[AT.depth] = end - d;
      slots[AT.accumulate] = accumulate || d > 0 ? 1 : 0;
      const slice = sliceColumns(end - d);
      for (let i = 0; i < m; i += rowBlock) {
        const rows = Math.min(rowBlock, m - i);
        slots[AT.rows] = rows;
        scales.a.fill(a, { first: i, count: rows, width: aFormat.width }, part);
        for (let j = 0; j < n; j += slice) {
          const columns = Math.min(slice, n - j);
          slots[AT.columns] = columns;
          slots[AT.packsA] = j === 0 ? 1 : 0;
          scales.b.fill(b, { first: j, count: columns, width: bFormat.width }, part);
          at(i, j, d);
          blocks.run();
        }
      }
      d = end;
    }
  };
}

/** Neighbouring rows or columns of the output, in panels of `width`. */
interface Lanes {
  readonly first: number;
  readonly count: number;
  readonly width: number;
}

/** Neighbouring pieces of depth. */
interface Pieces {
  readonly first: number;
  readonly depth: number;
  readonly count: number;
}

/** Writes an operand's scales into its panels. */
type FillScales = (place: ScaledPlace, lanes: Lanes, pieces: Pieces) => void;

interface OperandScales {
  /** Says where panels and constants are; before each block. */
  readonly begin: () => void;
  readonly fill: FillScales;
}

/** Pieces whose scales there is room for. */
const PIECES_MAX = 32;

/**
 * The scales of one panel and piece. Every product passes here for each of its panels: lanes with
 * scales of their own are copied, panels within one tile have one scale.
 */
function fillLanes(
  floats: Float32Array,
  panel: {
    readonly at: number;
    readonly lanes: number;
    /** Scale of lane 0. */
    readonly ofPiece: number;
    /** The panel's first lane within the operand. */
    readonly lane: number;
    readonly laneTile: number;
    readonly laneStep: number;
  },
): void {
  const { at, lanes, ofPiece, lane, laneTile, laneStep } = panel;
  if (laneTile === 1) {
    let from = ofPiece + lane * laneStep;
    for (let to = at; to < at + lanes; to++, from += laneStep) floats[to] = floats[from]!;
    return;
  }
  const firstTile = floorDiv(lane, laneTile);
  if (firstTile === floorDiv(lane + lanes - 1, laneTile)) {
    floats.fill(floats[ofPiece + firstTile * laneStep]!, at, at + lanes);
    return;
  }
  for (let i = 0; i < lanes; i++) {
    floats[at + i] = floats[ofPiece + floorDiv(lane + i, laneTile) * laneStep]!;
  }
}

/** Panels of scales and the constants of widening, in the scratch that packing leaves. */
function layOutScales(
  core: X64Core,
  formats: readonly [a: ProductFormat, b: ProductFormat],
  transposition: Transposition,
  { slots, memory, rest }: PreparedBlocks,
): { readonly a: OperandScales; readonly b: OperandScales } {
  let next = rest.byteOffset;
  const take = (bytes: number): number => {
    const offset = next;
    next += bytes;
    assert(next <= rest.byteOffset + rest.byteLength, `scales need ${bytes} more bytes of scratch`);
    return offset;
  };
  const panelsFor = (operand: "a" | "b", lanes: number, width: number): OperandScales => {
    const constants = take(WIDENING_BYTES);
    const words = wideningConstants(formats[operand === "a" ? 0 : 1]);
    const panels = take(roundUp(lanes, width) * PIECES_MAX * 4);
    // Slots and scratch belong to whatever runs on this thread: they are written for each block.
    const begin = (): void => {
      memory.u16.set(words, constants / 2);
      slots[AT[`${operand}Constants`]] = memory.baseAddress + constants;
      slots[AT[`${operand}Scales`]] = memory.baseAddress + panels;
    };
    const isDepthContiguous = operand === "a" ? transposition !== "tn" : transposition === "nt";
    const fill: FillScales = (place, { first, count, width }, pieces) => {
      slots[AT[`${operand}ScalesPanelBytes`]] = pieces.count * width * 4;
      const to = memory.f32;
      const from = place.scalesOffset / 4;
      const [laneFirst, laneTile, laneStep, depthFirst, depthTile, depthStep] = isDepthContiguous
        ? [
            place.firstRow,
            place.tileRows,
            place.scaleRowStride,
            place.firstColumn,
            place.tileColumns,
            1,
          ]
        : [
            place.firstColumn,
            place.tileColumns,
            1,
            place.firstRow,
            place.tileRows,
            place.scaleRowStride,
          ];
      for (let p = 0; p < pieces.count; p++) {
        const depth = depthFirst + pieces.first + p * pieces.depth;
        const ofPiece = from + floorDiv(depth, depthTile) * depthStep;
        let at = panels / 4 + p * width;
        for (let start = 0; start < count; start += width) {
          const lane = laneFirst + first + start;
          const lanes = Math.min(width, count - start);
          fillLanes(to, { at, lanes, ofPiece, lane, laneTile, laneStep });
          at += pieces.count * width;
        }
      }
    };
    return { begin, fill };
  };
  return {
    a: panelsFor("a", core.maxRows, core.aFormat.width),
    b: panelsFor("b", SLICE_COLUMNS_MAX, core.bFormat.width),
  };
}
