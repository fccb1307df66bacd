/**
 * @file From blocks to products: walks the tasks of a launch and hands each block to a multiplier.
 */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { KernelBody } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import { MATMUL_AT as AT } from "./contract.ts";

/**
 * The body of `matmul` over one thread's multiplier. `inputBytes` is the size of an element of a
 * and b.
 */
export function matmulBody(
  multiply: BlockMultiplier,
  transposition: Transposition,
  inputBytes: number,
): KernelBody {
  const outBytes = inputBytes === 8 ? 8 : 4;
  return (slots, firstTask, endTask) => {
    const rows = slot(slots, AT.rows);
    const columns = slot(slots, AT.columns);
    const depth = slot(slots, AT.depth);
    const aRowStride = slot(slots, AT.aRowStride);
    const bRowStride = slot(slots, AT.bRowStride);
    const outRowStride = slot(slots, AT.outRowStride);
    const rowBlock = slot(slots, AT.rowBlock);
    const columnBlock = slot(slots, AT.columnBlock);
    const accumulate = slot(slots, AT.accumulate) !== 0;
    const numColumnBlocks = ceilDiv(columns, columnBlock);
    const numRowBlocks = ceilDiv(rows, rowBlock);
    // Elements from one row (column) of the output to the operand element it starts from.
    const aPerRow = transposition === "tn" ? 1 : aRowStride;
    const bPerColumn = transposition === "nt" ? bRowStride : 1;
    for (let task = firstTask; task < endTask; task++) {
      const blockRow = floorDiv(task, numColumnBlocks);
      const batch = floorDiv(blockRow, numRowBlocks);
      const row = (blockRow - batch * numRowBlocks) * rowBlock;
      const column = (task - blockRow * numColumnBlocks) * columnBlock;
      const a = batch * slot(slots, AT.aBatchStride) + row * aPerRow;
      const b = batch * slot(slots, AT.bBatchStride) + column * bPerColumn;
      const out = batch * slot(slots, AT.outBatchStride) + row * outRowStride + column;
      multiply(
        slot(slots, AT.aOffset) + a * inputBytes,
        aRowStride,
        slot(slots, AT.bOffset) + b * inputBytes,
        bRowStride,
        slot(slots, AT.outOffset) + out * outBytes,
        outRowStride,
        Math.min(rowBlock, rows - row),
        Math.min(columnBlock, columns - column),
        depth,
        accumulate,
      );
    }
  };
}
