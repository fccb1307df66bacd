/**
 * @file From blocks to products of scaled operands: walks the tasks of a launch and hands each
 * block to a multiplier.
 */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { KernelBody } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { SCALED_MATMUL_AT as AT, OPERAND_SLOTS } from "./contract.ts";
import type { ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";

/** The body of `scaledMatmul` over one thread's multiplier. */
export function scaledMatmulBody(
  multiply: ScaledBlockMultiplier,
  transposition: Transposition,
): KernelBody {
  return (slots, firstTask, endTask) => {
    const rows = slot(slots, AT.rows);
    const columns = slot(slots, AT.columns);
    const rowBlock = slot(slots, AT.rowBlock);
    const columnBlock = slot(slots, AT.columnBlock);
    const outRowStride = slot(slots, AT.outRowStride);
    const a = readOperand(slots, AT.aCodesOffset);
    const b = readOperand(slots, AT.bCodesOffset);
    const numColumnBlocks = ceilDiv(columns, columnBlock);
    for (let task = firstTask; task < endTask; task++) {
      const blockRow = floorDiv(task, numColumnBlocks);
      const row = blockRow * rowBlock;
      const column = (task - blockRow * numColumnBlocks) * columnBlock;
      multiply({
        a: transposition === "tn" ? placeAt(a, 0, row) : placeAt(a, row, 0),
        b: transposition === "nt" ? placeAt(b, column, 0) : placeAt(b, 0, column),
        outOffset: slot(slots, AT.outOffset) + 4 * (row * outRowStride + column),
        outRowStride,
        m: Math.min(rowBlock, rows - row),
        n: Math.min(columnBlock, columns - column),
        k: slot(slots, AT.depth),
        pieceDepth: slot(slots, AT.pieceDepth),
        accumulate: slot(slots, AT.accumulate) !== 0,
      });
    }
  };
}

/** The operand whose slots begin at `at`, as a whole. */
export function readOperand(slots: Float64Array, at: number): ScaledPlace {
  const read = (name: (typeof OPERAND_SLOTS)[number]): number =>
    slot(slots, at + OPERAND_SLOTS.indexOf(name));
  return {
    codesOffset: read("aCodesOffset"),
    rowStride: read("aRowStride"),
    scalesOffset: read("aScalesOffset"),
    scaleRowStride: read("aScaleRowStride"),
    tileRows: read("aTileRows"),
    tileColumns: read("aTileColumns"),
    firstRow: 0,
    firstColumn: 0,
  };
}

/** The part of an operand that starts at this row and column of it. */
export function placeAt(operand: ScaledPlace, row: number, column: number): ScaledPlace {
  return {
    ...operand,
    codesOffset: operand.codesOffset + row * operand.rowStride + column,
    firstRow: operand.firstRow + row,
    firstColumn: operand.firstColumn + column,
  };
}
