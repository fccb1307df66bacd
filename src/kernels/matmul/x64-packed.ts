/**
 * @file Products with packed weights in x86-64 machine code: the block product, told that B is
 * packed.
 *
 * Packed B is, for each block of depth, the panels of all columns one after another:
 * 32 columns × (depth of the block, in words) × 4 bytes each.
 */
import { assert, defined } from "../../base/errors.ts";
import { ceilDiv, roundUp } from "../../base/integers.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { Transposition } from "./block-multiplier.ts";
import type { PackedMultiplier } from "./packed-multiplier.ts";
import { chooseCore } from "./x64.ts";
import { BLOCK_AT as AT } from "./x64-block.ts";
import { type PreparedBlocks, prepareBlocks, SLICE_COLUMNS, zeroBlock } from "./x64-blocks.ts";
import type { X64Core } from "./x64-core.ts";
import { PACK_SLACK_BYTES, type X64InputDType } from "./x64-pack.ts";

/** Packed products of one thread; refused exactly where `x64MultiplierRefusal` refuses. */
export function createX64PackedMultiplier(
  transposition: Transposition,
  dtype: X64InputDType,
  context: ThreadContext,
  scratch: Span = context.scratch,
): PackedMultiplier {
  const { native } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const core = defined(chooseCore(dtype, native.features), `a core for ${dtype}`);
  return createPackedMultiplierOver(core, transposition, context, scratch);
}

/** The same over a given core. */
export function createPackedMultiplierOver(
  core: X64Core,
  transposition: Transposition,
  context: ThreadContext,
  scratch: Span,
): PackedMultiplier {
  const blocks = prepareBlocks(core, transposition, context, scratch);
  const { depthBlock, elementBytes } = blocks;
  const { width: columnUnit, depthUnit } = core.bFormat;
  const columnBytes = (depth: number): number =>
    roundUp(ceilDiv(depth * elementBytes, 4), depthUnit) * 4;
  const packing: Packing = { core, transposition, blocks, columnBytes };
  return {
    columnUnit,
    packedBytes: (n, k) => {
      const wholeBlocks = Math.floor(k / depthBlock);
      const perColumn = wholeBlocks * columnBytes(depthBlock) + columnBytes(k % depthBlock);
      return roundUp(n, columnUnit) * perColumn + PACK_SLACK_BYTES;
    },
    pack: packWith(packing),
    multiply: multiplyWith(packing),
  };
}

interface Packing {
  readonly core: X64Core;
  readonly transposition: Transposition;
  readonly blocks: PreparedBlocks;
  /** Bytes of one column of a block that is `depth` elements deep. */
  columnBytes(depth: number): number;
}

function packWith({ core, transposition, blocks, columnBytes }: Packing): PackedMultiplier["pack"] {
  const { slots, depthBlock, elementBytes } = blocks;
  return (bOffset, bStride, n, k, packedOffset) => {
    assert(packedOffset % 64 === 0, `packedOffset (${packedOffset}) must be a multiple of 64`);
    const bStrideBytes = bStride * elementBytes;
    const [perColumn, perDepth] =
      transposition === "nt" ? [bStrideBytes, elementBytes] : [elementBytes, bStrideBytes];
    slots[AT.bStrideBytes] = bStrideBytes;
    slots[AT.aPanels] = blocks.aPanels;
    slots[AT.buffer] = blocks.buffer;
    slots[AT.packsA] = 0;
    slots[AT.packsB] = 1;
    slots[AT.rows] = 0;
    let to = packedOffset;
    for (let d = 0; d < k; d += depthBlock) {
      const depth = Math.min(depthBlock, k - d);
      slots[AT.depth] = depth;
      // In slices: what a slice writes beyond its last panel, the next one writes again.
      for (let j = 0; j < n; j += SLICE_COLUMNS) {
        slots[AT.columns] = Math.min(SLICE_COLUMNS, n - j);
        slots[AT.b] = bOffset + j * perColumn + d * perDepth;
        slots[AT.bPanels] = to + j * columnBytes(depth);
        blocks.run();
      }
      to += roundUp(n, core.bFormat.width) * columnBytes(depth);
    }
  };
}

function multiplyWith(packing: Packing): PackedMultiplier["multiply"] {
  const { core, transposition, blocks, columnBytes } = packing;
  const { slots, memory, depthBlock, elementBytes } = blocks;
  const columnUnit = core.bFormat.width;
  return (p) => {
    const { m, n, k, firstColumn, columns, outRowStride, accumulate } = p;
    assert(firstColumn % columnUnit === 0, `firstColumn (${firstColumn}) splits a panel`);
    assert(firstColumn + columns <= n, `columns end at ${firstColumn + columns} of ${n}`);
    const aStrideBytes = p.aRowStride * elementBytes;
    const [perRow, perDepth] =
      transposition === "tn" ? [elementBytes, aStrideBytes] : [aStrideBytes, elementBytes];
    slots[AT.aStrideBytes] = aStrideBytes;
    slots[AT.outStrideBytes] = outRowStride * 4;
    slots[AT.aPanels] = blocks.aPanels;
    slots[AT.buffer] = blocks.buffer;
    slots[AT.packsB] = 0;
    if (k === 0 && !accumulate) zeroBlock(memory.f32, p.outOffset / 4, outRowStride, m, columns);
    let panels = p.packedOffset;
    for (let d = 0; d < k; d += depthBlock) {
      const depth = Math.min(depthBlock, k - d);
      slots[AT.depth] = depth;
      slots[AT.accumulate] = accumulate || d > 0 ? 1 : 0;
      for (let i = 0; i < m; i += core.maxRows) {
        slots[AT.a] = p.aOffset + i * perRow + d * perDepth;
        slots[AT.rows] = Math.min(core.maxRows, m - i);
        for (let j = 0; j < columns; j += SLICE_COLUMNS) {
          slots[AT.bPanels] = panels + (firstColumn + j) * columnBytes(depth);
          slots[AT.columns] = Math.min(SLICE_COLUMNS, columns - j);
          slots[AT.out] = p.outOffset + (i * outRowStride + j) * 4;
          slots[AT.packsA] = j === 0 ? 1 : 0;
          blocks.run();
        }
      }
      panels += roundUp(n, columnUnit) * columnBytes(depth);
    }
  };
}
