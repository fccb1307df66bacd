/**
 * @file Products of coded weights in x86-64 machine code, for processors with AVX512_BF16 and
 * AVX512_VBMI.
 *
 * Up to eight rows read codes where they stand (x64-few-rows.ts); more go through cache blocks
 * (x64-many-rows.ts): depth outermost, in blocks that depend on K alone and hold whole groups, then
 * rows, then slices of columns.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, roundUp } from "../../base/integers.ts";
import type { ThreadContext } from "../../device/program.ts";
import { PANEL_ROWS, STEP_DEPTH } from "../../tensor/coded-weight.ts";
import { BLOCK_AT as AT } from "../matmul/x64-block.ts";
import { loadCode, zeroBlock } from "../matmul/x64-blocks.ts";
import { PACK_SLACK_BYTES } from "../matmul/x64-pack.ts";
import { TILE_ROWS } from "../matmul/x64-vector-core.ts";
import type { CodedBlock, CodedBlockMultiplier } from "./coded-block.ts";
import { parseCodedVariant } from "./contract.ts";
import { CONSTANTS_BYTES, expansionConstants } from "./x64-expand.ts";
import { emitCodedFewRows, FEW_ROWS } from "./x64-few-rows.ts";
import { BLOCK, emitCodedBlock } from "./x64-many-rows.ts";
import { type CodedCore, scaleBytes } from "./x64-parts.ts";

const PAGE = 4096;
const A_BYTES = roundUp(BLOCK.rows * BLOCK.words * 4 + PACK_SLACK_BYTES, PAGE);
const B_BYTES = roundUp(BLOCK.columns * BLOCK.words * 4 + PACK_SLACK_BYTES, PAGE);
/** Sums of the groups of `a`: of all panels of a block, or of all depth of a few rows. */
const SUMS_BYTES = 2 ** 19;

/** null if x64 code can multiply coded weights here; otherwise the reason. */
export function x64CodedRefusal({ native }: ThreadContext): string | null {
  if (native === null) return "native code is off or impossible here";
  const { avx512Bf16, avx512Vbmi } = native.features;
  return avx512Bf16 && avx512Vbmi ? null : "the processor has no AVX512_BF16 and AVX512_VBMI";
}

/** The block core in machine code, for one thread; it uses the thread's scratch. */
export function createX64CodedMultiplier(
  variant: string,
  context: ThreadContext,
): CodedBlockMultiplier {
  const { memory } = context;
  const core: CodedCore = parseCodedVariant(variant);
  const { slots, begin, pointTo } = argumentsOf(core, context);
  const runFewRows = fewRowsOf(core, context);
  let runBlock: (() => void) | undefined;
  return (block) => {
    const { m, n, k, outOffset, outRowStride, groupSize } = block;
    if (k === 0) {
      if (!block.accumulate) zeroBlock(memory.f32, outOffset / 4, outRowStride, m, n);
      return;
    }
    begin(block);
    if (fitsFewRows(block)) {
      pointTo(block, 0, 0, 0);
      slots[AT.rows] = m;
      slots[AT.columns] = n;
      slots[AT.depth] = k;
      slots[AT.accumulate] = block.accumulate ? 1 : 0;
      runFewRows(m);
      return;
    }
    runBlock ??= loadCode(emitCodedBlock(core), context);
    const depthBlock = 2 * BLOCK.words;
    for (let d = 0; d < k; d += depthBlock) {
      const depth = Math.min(depthBlock, k - d);
      slots[AT.depth] = depth;
      slots[AT.aScalesPanelBytes] = ceilDiv(depth, groupSize) * TILE_ROWS * 4;
      slots[AT.accumulate] = block.accumulate || d > 0 ? 1 : 0;
      for (let i = 0; i < m; i += BLOCK.rows) {
        slots[AT.rows] = Math.min(BLOCK.rows, m - i);
        for (let j = 0; j < n; j += BLOCK.columns) {
          slots[AT.columns] = Math.min(BLOCK.columns, n - j);
          slots[AT.packsA] = j === 0 ? 1 : 0;
          pointTo(block, i, j, d);
          runBlock();
        }
      }
    }
  };
}

/** The slots of a thread, and what fills them. */
interface Arguments {
  readonly slots: Float64Array;
  /** What is the same for all of a block. */
  readonly begin: (block: CodedBlock) => void;
  /** Points at the part of a block from row i, column j and depth d on. */
  readonly pointTo: (block: CodedBlock, i: number, j: number, d: number) => void;
}

function argumentsOf(
  core: CodedCore,
  { memory, argumentBlock, scratch }: ThreadContext,
): Arguments {
  const constants = scratch.byteOffset;
  const aPanels = roundUp(constants + CONSTANTS_BYTES, PAGE);
  const bPanels = aPanels + A_BYTES;
  const sums = bPanels + B_BYTES;
  const end = sums + SUMS_BYTES + PACK_SLACK_BYTES;
  assert(
    end <= scratch.byteOffset + scratch.byteLength,
    `products of coded weights need ${end - scratch.byteOffset} bytes of scratch`,
  );
  const tables = expansionConstants(core.format);
  // Shared memory grows in place: this view never goes stale.
  const { byteOffset, byteLength } = argumentBlock;
  const slots = new Float64Array(memory.wasm.buffer, byteOffset, byteLength / 8);
  const perLane = scaleBytes(core) / PANEL_ROWS;
  return {
    slots,
    begin: (block) => {
      // Slots and scratch belong to whatever runs on this thread: they are written for each block.
      memory.u8.set(tables, constants);
      slots[AT.packsA] = 1;
      slots[AT.aStrideBytes] = 2 * block.aRowStride;
      slots[AT.bStrideBytes] = block.panelCodeBytes;
      slots[AT.outStrideBytes] = 4 * block.outRowStride;
      slots[AT.aPanels] = aPanels;
      slots[AT.bPanels] = bPanels;
      slots[AT.aConstants] = memory.baseAddress + constants;
      slots[AT.aScales] = memory.baseAddress + sums;
      slots[AT.bScalesPanelBytes] = block.panelScales * perLane;
      slots[AT.pieceWords] = block.groupSize / 2;
    },
    pointTo: (block, i, j, d) => {
      const panel = j / PANEL_ROWS;
      const scale = panel * block.panelScales + (d / block.groupSize) * PANEL_ROWS;
      slots[AT.a] = block.aOffset + 2 * (i * block.aRowStride + d);
      slots[AT.b] = block.codesOffset + panel * block.panelCodeBytes + d * stepBytesAt(core);
      slots[AT.bScales] = memory.baseAddress + block.scalesOffset + scale * perLane;
      slots[AT.bConstants] = memory.baseAddress + block.offsetsOffset + scale;
      slots[AT.out] = block.outOffset + 4 * (i * block.outRowStride + j);
    },
  };
}

/** Bytes of a panel's codes at one depth. */
function stepBytesAt({ format }: CodedCore): number {
  return format === "int4" ? PANEL_ROWS / 2 : PANEL_ROWS;
}

/** Whether all of the depth has room: packed, and summed group by group. */
function fitsFewRows({ m, k, groupSize }: CodedBlock): boolean {
  const rows = FEW_ROWS.find((count) => count >= m);
  if (rows === undefined) return false;
  const packed = roundUp(k, STEP_DEPTH) * 2 * rows;
  return packed <= A_BYTES - PACK_SLACK_BYTES && ceilDiv(k, groupSize) * 4 * rows <= SUMS_BYTES;
}

/** Runs the code for at least `m` rows, made at first use. */
function fewRowsOf(core: CodedCore, context: ThreadContext): (m: number) => void {
  const kernels = FEW_ROWS.map((): (() => void) | undefined => undefined);
  return (m) => {
    const index = FEW_ROWS.findIndex((rows) => rows >= m);
    const run = kernels[index] ?? loadCode(emitCodedFewRows(core, FEW_ROWS[index]!), context);
    kernels[index] = run;
    run();
  };
}
