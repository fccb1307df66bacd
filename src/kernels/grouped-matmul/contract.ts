/**
 * @file Expert products: one matrix product a group, the rows of all groups standing one after
 * another.
 *
 *     nt, nn: out_RN[r] (=|+=) a_RK[r] · b_g            for rows r in [offsets[g], offsets[g+1])
 *     tn:     out_GMN[g] (=|+=) a_RM[rows of g]ᵀ · b_RN[rows of g]
 *
 *   R rows of all groups, G groups; offsets i32 [G+1], rising, starting at 0
 *   nt: b [G·N, K]   nn: b [G·K, N]   tn: out [G·M, N]: the groups' matrices stacked
 *
 * Dtypes and the order of summation are those of `matmul`. A group without rows is legal: it leaves
 * its `out` zero (tn, overwriting) or as it was. Rows beyond offsets[G] are not written. The output
 * overlaps no input; `a` may be `b`.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, divExact, floorDiv, roundUp } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOffsets, assertOperand } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { MAX_ROW_BLOCK, planBlocks, ROW_UNIT } from "../matmul/blocks.ts";
import type { MatmulDType } from "../matmul/contract.ts";

export const GROUPED_MATMUL_SLOTS = [
  "numGroups",
  "rows",
  "columns",
  "depth",
  "aOffset",
  "aRowStride",
  "bOffset",
  "bRowStride",
  "bGroupStride",
  "outOffset",
  "outRowStride",
  "outGroupStride",
  "accumulate",
  "groupOffsets",
  "rowBlock",
  "columnBlock",
] as const;
export const GROUPED_MATMUL_AT: Record<(typeof GROUPED_MATMUL_SLOTS)[number], number> =
  slotIndex(GROUPED_MATMUL_SLOTS);

export interface GroupedMatmulCall {
  readonly transposition: Transposition;
  readonly a: Tensor<MatmulDType>;
  readonly b: Tensor<MatmulDType>;
  readonly out: Tensor<"f32" | "f64">;
  readonly offsets: Tensor<"i32">;
  readonly accumulate?: boolean;
}

/** Launch the products of all groups. */
export function groupedMatmul(device: Device, call: GroupedMatmulCall): void {
  const { transposition, a, b, out, offsets } = call;
  const numGroups = offsets.columns - 1;
  assertMatrix(device, "groupedMatmul offsets", offsets, ["i32"], 1, offsets.columns);
  assert(numGroups >= 1, `groupedMatmul: offsets hold ${offsets.columns} entries; at least 2`);
  const shape = transposition === "tn" ? weightGradShape(call) : rowsShape(call, numGroups);
  assert(
    a.dtype === b.dtype,
    `groupedMatmul: a (${a.dtype}) and b (${b.dtype}) must share a dtype`,
  );
  assert(
    (a.dtype === "f64") === (out.dtype === "f64"),
    `groupedMatmul: out is f64 exactly if a (${a.dtype}) is; it is ${out.dtype}`,
  );
  for (const [name, tensor] of Object.entries({ a, b, out })) {
    assertOperand(device, `groupedMatmul ${name}`, tensor);
  }
  assertOffsets("groupedMatmul offsets", offsets, a.rows);
  const isTn = transposition === "tn";
  const meanRows = ceilDiv(a.rows, numGroups);
  const { numThreads } = device;
  const plan = planBlocks({
    rows: isTn ? shape.rows : Math.max(1, meanRows),
    columns: shape.columns,
    depth: isTn ? meanRows : shape.depth,
    numThreads,
    batchCount: isTn ? numGroups : Math.min(numGroups, Math.max(1, a.rows)),
  });
  const { columnBlock } = plan;
  const rowBlock = isTn ? plan.rowBlock : groupRowBlock(plan.rowBlock, a.rows, numThreads);
  const numRowBlocks = isTn
    ? numGroups * ceilDiv(shape.rows, rowBlock)
    : mostRowBlocks(a.rows, numGroups, rowBlock);
  device.launch(
    `groupedMatmul/${transposition}.${a.dtype}`,
    [
      numGroups,
      shape.rows,
      shape.columns,
      shape.depth,
      a.byteOffset,
      a.rowStride,
      b.byteOffset,
      b.rowStride,
      shape.bRowsPerGroup * b.rowStride,
      out.byteOffset,
      out.rowStride,
      shape.rows * out.rowStride,
      call.accumulate === true ? 1 : 0,
      offsets.byteOffset,
      rowBlock,
      columnBlock,
    ],
    numRowBlocks * ceilDiv(shape.columns, columnBlock),
  );
}

/** Tasks a thread that the rows of one group may keep waiting. */
const TASKS_PER_THREAD = 4;

/**
 * Rows of a task; `planned` are those for a group of the mean size. Each task packs its group's
 * weights, so a larger group is cut only where it has more than a task's share of all rows.
 */
export function groupRowBlock(planned: number, rows: number, numThreads: number): number {
  const tasks = numThreads === 1 ? 1 : numThreads * TASKS_PER_THREAD;
  const share = roundUp(ceilDiv(rows, tasks), ROW_UNIT);
  return Math.max(planned, Math.min(share, MAX_ROW_BLOCK));
}

/**
 * Blocks of rows that groups of any sizes can have. The sizes are looked at by the tasks alone, so
 * that a launch can be recorded and replayed with others; a task beyond the last block does
 * nothing.
 */
export function mostRowBlocks(rows: number, numGroups: number, rowBlock: number): number {
  return Math.min(rows, numGroups) + floorDiv(rows, rowBlock);
}

interface GroupShape {
  /** Rows of one group's output (tn), else 0: they come from the offsets. */
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
  readonly bRowsPerGroup: number;
}

function rowsShape(call: GroupedMatmulCall, numGroups: number): GroupShape {
  const { a, b, out, transposition } = call;
  const bRowsPerGroup = divExact(b.rows, numGroups);
  const [columns, depth] =
    transposition === "nt" ? [bRowsPerGroup, b.columns] : [b.columns, bRowsPerGroup];
  assert(a.columns === depth, `groupedMatmul: a has ${a.columns} columns; the depth is ${depth}`);
  assert(
    out.columns === columns && out.rows === a.rows,
    `groupedMatmul: out is ${out.rows}×${out.columns}, not ${a.rows}×${columns}`,
  );
  return { rows: 0, columns, depth, bRowsPerGroup };
}

function weightGradShape(call: GroupedMatmulCall): GroupShape {
  const { a, b, out, offsets } = call;
  const rows = divExact(out.rows, offsets.columns - 1);
  assert(a.rows === b.rows, `groupedMatmul tn: a has ${a.rows} rows, b ${b.rows}`);
  assert(
    a.columns === rows && b.columns === out.columns,
    `groupedMatmul tn: out is [G·${rows}, ${out.columns}], not [G·${a.columns}, ${b.columns}]`,
  );
  return { rows, columns: out.columns, depth: 0, bRowsPerGroup: 0 };
}
