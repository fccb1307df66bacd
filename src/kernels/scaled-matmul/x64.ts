/**
 * @file Products of scaled operands in x86-64 machine code: on AMX tiles (x64-tiles.ts), and here
 * on vectors.
 *
 * The loops over cache blocks are those of matmul/x64.ts; a block of depth is a whole number of
 * pieces. Scales are laid out beside the panels: they are a 128th of the operands, or less.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, roundUp } from "../../base/integers.ts";
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
import {
  cutDepth,
  fillScales,
  isDepthAlongRows,
  type Lanes,
  PIECES_MAX,
  type Pieces,
} from "./x64-scales.ts";
import { createScaledTileMultiplier } from "./x64-tiles.ts";

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
  const { amxBf16, avx512Vbmi, avx512Bf16 } = native.features;
  if (amxBf16 && avx512Vbmi) {
    return createScaledTileMultiplier(formats, transposition, null, context);
  }
  const core = scaledCore(...formats, avx512Bf16 ? "bf16" : "f32");
  return createScaledMultiplierOver(core, formats, transposition, context);
}

/** The same over a core of vectors. */
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
  const unit = elementsPerWord(aFormat.dtype);
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
    slots[AT.pieceWords] = ceilDiv(Math.min(pieceDepth, depthBlock), unit);
    if (k === 0 && !accumulate) zeroBlock(memory.f32, outOffset / 4, outRowStride, m, n);
    const rowBlock = evenRows(m, maxRows, aFormat.width);
    for (const part of cutDepth({ k, pieceDepth, depthBlock, unit })) {
      const depth = part.end - part.first;
      slots[AT.depth] = depth;
      slots[AT.accumulate] = accumulate || part.first > 0 ? 1 : 0;
      const slice = sliceColumns(depth);
      for (let i = 0; i < m; i += rowBlock) {
        const rows = Math.min(rowBlock, m - i);
        slots[AT.rows] = rows;
        scales.a.fill(a, { first: i, count: rows, width: aFormat.width }, part);
        for (let j = 0; j < n; j += slice) {
          const columns = Math.min(slice, n - j);
          slots[AT.columns] = columns;
          slots[AT.packsA] = j === 0 ? 1 : 0;
          scales.b.fill(b, { first: j, count: columns, width: bFormat.width }, part);
          at(i, j, part.first);
          blocks.run();
        }
      }
    }
  };
}

interface OperandScales {
  /** Says where panels and constants are; before each block. */
  readonly begin: () => void;
  readonly fill: (place: ScaledPlace, lanes: Lanes, pieces: Pieces) => void;
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
    const alongRows = isDepthAlongRows(operand, transposition);
    return {
      // Slots and scratch belong to whatever runs on this thread: they are written for each block.
      begin: () => {
        memory.u16.set(words, constants / 2);
        slots[AT[`${operand}Constants`]] = memory.baseAddress + constants;
        slots[AT[`${operand}Scales`]] = memory.baseAddress + panels;
      },
      fill: (place, laneRange, pieces) => {
        slots[AT[`${operand}ScalesPanelBytes`]] = pieces.count * width * 4;
        fillScales(memory.f32, panels / 4, place, alongRows, laneRange, pieces);
      },
    };
  };
  return {
    a: panelsFor("a", core.maxRows, core.aFormat.width),
    b: panelsFor("b", SLICE_COLUMNS_MAX, core.bFormat.width),
  };
}
