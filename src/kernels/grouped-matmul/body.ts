/** @file From blocks to expert products: finds each task's group by walking the offsets. */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import { GROUPED_MATMUL_AT as AT } from "./contract.ts";

/**
 * The body of `groupedMatmul` over one thread's multiplier. `inputBytes` is the size of an element
 * of a and b.
 */
export function groupedMatmulBody(
  multiply: BlockMultiplier,
  transposition: Transposition,
  inputBytes: number,
  context: ThreadContext,
): KernelBody {
  const run = transposition === "tn" ? runWeightGradTask : runRowsTask;
  return (slots, firstTask, endTask) => {
    for (let task = firstTask; task < endTask; task++) {
      run(multiply, slots, task, transposition, inputBytes, context);
    }
  };
}

/** nt and nn: the task is a block of rows of one group by a block of columns. */
function runRowsTask(
  multiply: BlockMultiplier,
  slots: Float64Array,
  task: number,
  transposition: Transposition,
  inputBytes: number,
  context: ThreadContext,
): void {
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
    if (group === numGroups) return;
    const blocks = ceilDiv(
      offsets[firstOffset + group + 1]! - offsets[firstOffset + group]!,
      rowBlock,
    );
    if (blocksLeft < blocks) break;
    blocksLeft -= blocks;
  }
  const row = offsets[firstOffset + group]! + blocksLeft * rowBlock;
  const endRow = offsets[firstOffset + group + 1]!;
  const outBytes = inputBytes === 8 ? 8 : 4;
  const bRowStride = slot(slots, AT.bRowStride);
  const bColumn = transposition === "nt" ? column * bRowStride : column;
  multiply(
    slot(slots, AT.aOffset) + row * slot(slots, AT.aRowStride) * inputBytes,
    slot(slots, AT.aRowStride),
    slot(slots, AT.bOffset) + (group * slot(slots, AT.bGroupStride) + bColumn) * inputBytes,
    bRowStride,
    slot(slots, AT.outOffset) + (row * slot(slots, AT.outRowStride) + column) * outBytes,
    slot(slots, AT.outRowStride),
    Math.min(rowBlock, endRow - row),
    Math.min(columnBlock, columns - column),
    slot(slots, AT.depth),
    slot(slots, AT.accumulate) !== 0,
  );
}

/** tn: the task is a block of one group's output; the depth is the group's rows. */
function runWeightGradTask(
  multiply: BlockMultiplier,
  slots: Float64Array,
  task: number,
  _transposition: Transposition,
  inputBytes: number,
  context: ThreadContext,
): void {
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
  const depth = context.memory.i32[firstOffset + 1]! - start;
  const outBytes = inputBytes === 8 ? 8 : 4;
  const aRowStride = slot(slots, AT.aRowStride);
  const bRowStride = slot(slots, AT.bRowStride);
  const outRowStride = slot(slots, AT.outRowStride);
  const out = group * slot(slots, AT.outGroupStride) + row * outRowStride + column;
  multiply(
    slot(slots, AT.aOffset) + (start * aRowStride + row) * inputBytes,
    aRowStride,
    slot(slots, AT.bOffset) + (start * bRowStride + column) * inputBytes,
    bRowStride,
    slot(slots, AT.outOffset) + out * outBytes,
    outRowStride,
    Math.min(rowBlock, rows - row),
    Math.min(columnBlock, columns - column),
    depth,
    slot(slots, AT.accumulate) !== 0,
  );
}
