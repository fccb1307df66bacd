/** @file From blocks to products of coded weights: finds each task's rows, matrix and columns. */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { PANEL_ROWS } from "../../tensor/coded-weight.ts";
import { slot } from "../kernel.ts";
import type { CodedBlock, CodedBlockMultiplier } from "./coded-block.ts";
import { CODED_MATMUL_AT as AT, parseCodedVariant } from "./contract.ts";

/** The body of `codedMatmul` over one thread's multiplier. */
export function codedMatmulBody(
  multiply: CodedBlockMultiplier,
  variant: string,
  context: ThreadContext,
): KernelBody {
  const { format } = parseCodedVariant(variant);
  const scaleBytes = format === "e4m3" ? 4 : 2;
  return (slots, firstTask, endTask) => {
    for (let task = firstTask; task < endTask; task++) {
      const block = blockOf(slots, task, scaleBytes, context);
      if (block !== null) multiply(block);
    }
  };
}

interface Rows {
  readonly matrix: number;
  readonly first: number;
  readonly count: number;
}

/** null for a task beyond the last block. */
function blockOf(
  slots: Float64Array,
  task: number,
  scaleBytes: number,
  context: ThreadContext,
): CodedBlock | null {
  const columns = slot(slots, AT.columns);
  const columnBlock = slot(slots, AT.columnBlock);
  const numColumnBlocks = ceilDiv(columns, columnBlock);
  const rowBlockIndex = floorDiv(task, numColumnBlocks);
  const column = (task - rowBlockIndex * numColumnBlocks) * columnBlock;
  const rows = rowsOf(slots, rowBlockIndex, context);
  if (rows === null) return null;
  const panelScales = slot(slots, AT.panelScales);
  const panelCodeBytes = slot(slots, AT.panelCodeBytes);
  const panel = rows.matrix * slot(slots, AT.panelsPerMatrix) + floorDiv(column, PANEL_ROWS);
  const aRowStride = slot(slots, AT.aRowStride);
  const outRowStride = slot(slots, AT.outRowStride);
  return {
    aOffset: slot(slots, AT.aOffset) + 2 * rows.first * aRowStride,
    aRowStride,
    codesOffset: slot(slots, AT.codesOffset) + panel * panelCodeBytes,
    panelCodeBytes,
    scalesOffset: slot(slots, AT.scalesOffset) + panel * panelScales * scaleBytes,
    panelScales,
    offsetsOffset: slot(slots, AT.offsetsOffset) + panel * panelScales,
    groupSize: slot(slots, AT.groupSize),
    outOffset: slot(slots, AT.outOffset) + 4 * (rows.first * outRowStride + column),
    outRowStride,
    m: rows.count,
    n: Math.min(columnBlock, columns - column),
    k: slot(slots, AT.depth),
    accumulate: slot(slots, AT.accumulate) !== 0,
  };
}

/** The rows of a block, and the matrix that they are multiplied by. */
function rowsOf(slots: Float64Array, index: number, context: ThreadContext): Rows | null {
  const rowBlock = slot(slots, AT.rowBlock);
  const rowOffsets = slot(slots, AT.rowOffsets);
  if (rowOffsets < 0) {
    const first = index * rowBlock;
    return { matrix: 0, first, count: Math.min(rowBlock, slot(slots, AT.rows) - first) };
  }
  const offsets = context.memory.i32;
  const numMatrices = slot(slots, AT.numMatrices);
  let blocksLeft = index;
  for (let matrix = 0; matrix < numMatrices; matrix++) {
    const start = offsets[rowOffsets / 4 + matrix]!;
    const end = offsets[rowOffsets / 4 + matrix + 1]!;
    const blocks = ceilDiv(end - start, rowBlock);
    if (blocksLeft >= blocks) {
      blocksLeft -= blocks;
      continue;
    }
    const first = start + blocksLeft * rowBlock;
    return { matrix, first, count: Math.min(rowBlock, end - first) };
  }
  return null;
}
