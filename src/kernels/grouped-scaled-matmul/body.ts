/** @file From blocks to expert products of scaled operands: finds the group of each task. */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { placeAt, readOperand } from "../scaled-matmul/body.ts";
import type {
  ScaledBlock,
  ScaledBlockMultiplier,
  ScaledPlace,
} from "../scaled-matmul/scaled-block.ts";
import { GROUPED_SCALED_MATMUL_AT as AT } from "./contract.ts";

/** The body of `groupedScaledMatmul` over one thread's multiplier. */
export function groupedScaledMatmulBody(
  multiply: ScaledBlockMultiplier,
  transposition: Transposition,
  context: ThreadContext,
): KernelBody {
  return (slots, firstTask, endTask) => {
    for (let task = firstTask; task < endTask; task++) {
      const block =
        transposition === "tn"
          ? weightGradBlock(slots, task, context)
          : rowsBlock(slots, task, transposition, context);
      if (block !== null) multiply(block);
    }
  };
}

/** nt and nn: the task is a block of rows of one group by a block of columns; null: of none. */
function rowsBlock(
  slots: Float64Array,
  task: number,
  transposition: Transposition,
  context: ThreadContext,
): ScaledBlock | null {
  const columns = slot(slots, AT.columns);
  const rowBlock = slot(slots, AT.rowBlock);
  const columnBlock = slot(slots, AT.columnBlock);
  const numColumnBlocks = ceilDiv(columns, columnBlock);
  const offsets = context.memory.i32;
  const firstOffset = slot(slots, AT.groupOffsets) / 4;
  let blocksLeft = floorDiv(task, numColumnBlocks);
  const column = (task - blocksLeft * numColumnBlocks) * columnBlock;
  const numGroups = slot(slots, AT.numGroups);
  let group = 0;
  for (; ; group++) {
    if (group === numGroups) return null;
    const rows = offsets[firstOffset + group + 1]! - offsets[firstOffset + group]!;
    const blocks = ceilDiv(rows, rowBlock);
    if (blocksLeft < blocks) break;
    blocksLeft -= blocks;
  }
  const row = offsets[firstOffset + group]! + blocksLeft * rowBlock;
  const stacked = readOperand(slots, AT.bCodesOffset);
  const bScaleRow = group * slot(slots, AT.bScaleRowsPerGroup);
  const b = {
    ...stacked,
    codesOffset: stacked.codesOffset + group * slot(slots, AT.bRowsPerGroup) * stacked.rowStride,
    scalesOffset: stacked.scalesOffset + 4 * bScaleRow * stacked.scaleRowStride,
  };
  const outRowStride = slot(slots, AT.outRowStride);
  return {
    a: placeAt(readOperand(slots, AT.aCodesOffset), row, 0),
    b: transposition === "nt" ? placeAt(b, column, 0) : placeAt(b, 0, column),
    outOffset: slot(slots, AT.outOffset) + 4 * (row * outRowStride + column),
    outRowStride,
    m: Math.min(rowBlock, offsets[firstOffset + group + 1]! - row),
    n: Math.min(columnBlock, columns - column),
    k: slot(slots, AT.depth),
    pieceDepth: slot(slots, AT.pieceDepth),
    accumulate: slot(slots, AT.accumulate) !== 0,
  };
}

/** tn: the task is a block of one group's output; the depth is the group's rows. */
function weightGradBlock(slots: Float64Array, task: number, context: ThreadContext): ScaledBlock {
  const rows = slot(slots, AT.rows);
  const columns = slot(slots, AT.columns);
  const rowBlock = slot(slots, AT.rowBlock);
  const columnBlock = slot(slots, AT.columnBlock);
  const numColumnBlocks = ceilDiv(columns, columnBlock);
  const numRowBlocks = ceilDiv(rows, rowBlock);
  const blockRow = floorDiv(task, numColumnBlocks);
  const group = floorDiv(blockRow, numRowBlocks);
  const row = (blockRow - group * numRowBlocks) * rowBlock;
  const column = (task - blockRow * numColumnBlocks) * columnBlock;
  const firstOffset = slot(slots, AT.groupOffsets) / 4 + group;
  const start = context.memory.i32[firstOffset]!;
  const outRowStride = slot(slots, AT.outRowStride);
  const out = group * slot(slots, AT.outGroupStride) + row * outRowStride + column;
  const a = readOperand(slots, AT.aCodesOffset);
  const b = readOperand(slots, AT.bCodesOffset);
  return {
    a: placeAt(groupOf(a, slot(slots, AT.aIsGrouped) !== 0, group, start), 0, row),
    b: placeAt(groupOf(b, slot(slots, AT.bIsGrouped) !== 0, group, start), 0, column),
    outOffset: slot(slots, AT.outOffset) + 4 * out,
    outRowStride,
    m: Math.min(rowBlock, rows - row),
    n: Math.min(columnBlock, columns - column),
    k: context.memory.i32[firstOffset + 1]! - start,
    pieceDepth: slot(slots, AT.pieceDepth),
    accumulate: slot(slots, AT.accumulate) !== 0,
  };
}

/** The rows of a group that starts at row `start`; its scales by tensor/scaled-tensor.ts. */
function groupOf(
  operand: ScaledPlace,
  isGrouped: boolean,
  group: number,
  start: number,
): ScaledPlace {
  if (!isGrouped) return placeAt(operand, start, 0);
  const scaleRow = floorDiv(start, operand.tileRows) + group;
  return {
    ...operand,
    codesOffset: operand.codesOffset + start * operand.rowStride,
    scalesOffset: operand.scalesOffset + 4 * scaleRow * operand.scaleRowStride,
  };
}
