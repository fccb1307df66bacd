/**
 * @file Matrix products in x86-64 machine code.
 *
 * One native function multiplies one cache block: it packs its share of A and B (if asked to) and
 * runs a core over the panels. The loops over cache blocks are here: depth outermost (its blocks
 * depend on K alone, and are added to the output in rising order), then blocks of rows, then slices
 * of columns that stay in the second-level cache.
 */
import { assert, defined } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import type { CpuFeatures } from "../../device/cpu/features.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import { BLOCK_AT as AT, emitBlockProduct } from "./x64-block.ts";
import { evenRows, loadCode, type PreparedBlocks, prepareBlocks, zeroBlock } from "./x64-blocks.ts";
import { AMX_CORE, BF16_CORE, F32_CORE, WIDENING_CORE, type X64Core } from "./x64-core.ts";
import type { X64InputDType } from "./x64-pack.ts";

/** The core for a dtype on a processor; null if there is none for the dtype. */
export function chooseCore(dtype: string, features: CpuFeatures): X64Core | null {
  if (dtype === "f32") return F32_CORE;
  if (dtype !== "bf16") return null;
  if (features.amxBf16) return AMX_CORE;
  return features.avx512Bf16 ? BF16_CORE : WIDENING_CORE;
}

/** null if x64 code can multiply here; otherwise the reason. */
export function x64MultiplierRefusal(
  _transposition: Transposition,
  dtype: string,
  context: ThreadContext,
): string | null {
  if (context.native === null) return "native code is off or impossible here";
  if (chooseCore(dtype, context.native.features) !== null) return null;
  return `no x64 code multiplies ${dtype}`;
}

/** The block core in machine code, for one thread. `scratch` holds packed panels. */
export function createX64Multiplier(
  transposition: Transposition,
  dtype: X64InputDType,
  context: ThreadContext,
  scratch: Span = context.scratch,
): BlockMultiplier {
  const { native } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const core = defined(chooseCore(dtype, native.features), `a core for ${dtype}`);
  return createMultiplierOver(core, transposition, context, scratch);
}

/** The same over a given core. */
export function createMultiplierOver(
  core: X64Core,
  transposition: Transposition,
  context: ThreadContext,
  scratch: Span,
): BlockMultiplier {
  const blocks = prepareBlocks(core, transposition, context, scratch);
  const { slots, memory, depthBlock, sliceColumns } = blocks;
  const place = placeSlots(blocks, transposition);
  const multiplyFewRows = transposition === "nt" ? fewRowsOver(core, blocks, context) : null;
  const multiplyRows = transposition === "tn" ? null : wholeRowsOver(core, transposition, context);
  return (aOffset, aStride, bOffset, bStride, outOffset, outStride, m, n, k, accumulate) => {
    const at = place({ aOffset, aStride, bOffset, bStride, outOffset, outStride });
    if (multiplyFewRows?.(at, m, n, k, accumulate) === true) return;
    if (k === 0 && !accumulate) zeroBlock(memory.f32, outOffset / 4, outStride, m, n);
    const whole = multiplyRows?.count(m, k) ?? 0;
    // Rows of A that need no packing are one block, however many; B's panels serve the others too.
    const rowBlock = whole > 0 ? m : evenRows(m, core.maxRows, core.aFormat.width);
    for (let d = 0; d < k; d += depthBlock) {
      const depth = Math.min(depthBlock, k - d);
      const slice = sliceColumns(depth);
      slots[AT.depth] = depth;
      slots[AT.accumulate] = accumulate || d > 0 ? 1 : 0;
      for (let i = 0; i < m; i += rowBlock) {
        const rows = Math.min(rowBlock, m - i);
        for (let j = 0; j < n; j += slice) {
          slots[AT.columns] = Math.min(slice, n - j);
          slots[AT.packsB] = 1;
          if (whole > 0) {
            at(0, j, d);
            slots[AT.rows] = whole;
            multiplyRows?.run();
            slots[AT.packsB] = 0;
          }
          if (whole === m) continue;
          at(i + whole, j, d);
          slots[AT.rows] = rows - whole;
          slots[AT.packsA] = j === 0 ? 1 : 0;
          blocks.run();
        }
      }
    }
  };
}

/** Rows of A that a core multiplies where they stand. */
interface WholeRows {
  /** How many of a block's first rows, at this depth. */
  readonly count: (rows: number, depth: number) => number;
  readonly run: () => void;
}

function wholeRowsOver(
  core: X64Core,
  transposition: Transposition,
  context: ThreadContext,
): WholeRows | null {
  const { rows } = core;
  if (rows === undefined) return null;
  let code: (() => void) | null = null;
  return {
    count: (count, depth) => (depth % rows.unit === 0 ? count - (count % rows.unit) : 0),
    run: () => {
      code ??= loadCode(emitBlockProduct(transposition, core, rows), context);
      code();
    },
  };
}

/** Products of few rows over the same scratch; returns whether it took the product at `at`. */
function fewRowsOver(
  core: X64Core,
  blocks: PreparedBlocks,
  context: ThreadContext,
): (at: BlockPart, m: number, n: number, k: number, accumulate: boolean) => boolean {
  const { slots, depthBlock } = blocks;
  const codes = core.fewRows ?? [];
  const kernels = codes.map((): (() => void) | undefined => undefined);
  // All of a few rows' depth is packed into the room for a block of many.
  const depthMost = floorDiv(core.maxRows, core.aFormat.width) * depthBlock;
  return (at, m, n, k, accumulate) => {
    const index = codes.findIndex(({ rows }) => rows >= m);
    const code = codes[index];
    if (code === undefined || n < code.leastColumns || k === 0 || k > depthMost) return false;
    at(0, 0, 0);
    slots[AT.rows] = m;
    slots[AT.columns] = n;
    slots[AT.depth] = k;
    slots[AT.accumulate] = accumulate ? 1 : 0;
    slots[AT.packsA] = 1;
    const run = kernels[index] ?? loadCode(code.emit(), context);
    kernels[index] = run;
    run();
    return true;
  };
}

/** Where a whole block's operands and output stand. */
export interface BlockPlace {
  readonly aOffset: number;
  readonly aStride: number;
  readonly bOffset: number;
  readonly bStride: number;
  readonly outOffset: number;
  readonly outStride: number;
}

/** Points the slots at the part of a block from row i, column j and depth d on. */
export type BlockPart = (i: number, j: number, d: number) => void;

/**
 * Writes strides and panels into the slots, and returns what points them at the part of the block
 * from row i, column j and depth d on.
 */
export function placeSlots(
  { slots, elementBytes, aPanels, bPanels, buffer }: PreparedBlocks,
  transposition: Transposition,
): (place: BlockPlace) => BlockPart {
  const [aBytes, bBytes] = elementBytes;
  return ({ aOffset, aStride, bOffset, bStride, outOffset, outStride }) => {
    const aStrideBytes = aStride * aBytes;
    const bStrideBytes = bStride * bBytes;
    const [aRowBytes, aDepthBytes] =
      transposition === "tn" ? [aBytes, aStrideBytes] : [aStrideBytes, aBytes];
    const [bColumnBytes, bDepthBytes] =
      transposition === "nt" ? [bStrideBytes, bBytes] : [bBytes, bStrideBytes];
    slots[AT.aStrideBytes] = aStrideBytes;
    slots[AT.bStrideBytes] = bStrideBytes;
    slots[AT.outStrideBytes] = outStride * 4;
    slots[AT.aPanels] = aPanels;
    slots[AT.bPanels] = bPanels;
    slots[AT.buffer] = buffer;
    return (i, j, d) => {
      slots[AT.a] = aOffset + i * aRowBytes + d * aDepthBytes;
      slots[AT.b] = bOffset + j * bColumnBytes + d * bDepthBytes;
      slots[AT.out] = outOffset + (i * outStride + j) * 4;
    };
  };
}
