/**
 * @file Expert products of FP8 matrices with scales: one product a group, the rows of all groups
 * standing one after another.
 *
 *     nt, nn: out_RN[r] (=|+=) a_RK[r] · b_g            for rows r in [offsets[g], offsets[g+1])
 *     tn:     out_GMN[g] (=|+=) a_RM[rows of g]ᵀ · b_RN[rows of g]
 *
 *   nt: b [G·N, K]   nn: b [G·K, N]   tn: out [G·M, N]: the groups' matrices stacked
 *   nt, nn  a without groups; b in equal groups, so that its 128×128 blocks begin anew with each
 *           expert
 *   tn      a and b grouped by the same offsets, so that tiles along the tokens begin anew with
 *           each expert's first row; or with tiles as high as the whole matrix
 *
 * Operands, pieces, promotion, accumulation and the order of summation are those of `scaledMatmul`;
 * in tn the pieces of a group begin at its first row. A group without rows is legal: it leaves its
 * `out` zero (tn, overwriting) or as it was. Rows beyond offsets[G] are not written. `out` overlaps
 * no input; a may be b.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { ScaledTensor } from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOffsets } from "../door.ts";
import { groupRowBlock, mostRowBlocks } from "../grouped-matmul/contract.ts";
import { slotIndex } from "../kernel.ts";
import { planBlocks } from "../matmul/blocks.ts";
import { assertRowGroups } from "../quantize-tiles/bands.ts";
import {
  assertProductOperand,
  operandSlots,
  pieceDepthOf,
  type ScaledMatmulCall,
  variantOf,
} from "../scaled-matmul/contract.ts";

export const GROUPED_SCALED_MATMUL_SLOTS = [
  "numGroups",
  "rows",
  "columns",
  "depth",
  "aCodesOffset",
  "aRowStride",
  "aScalesOffset",
  "aScaleRowStride",
  "aTileRows",
  "aTileColumns",
  "bCodesOffset",
  "bRowStride",
  "bScalesOffset",
  "bScaleRowStride",
  "bTileRows",
  "bTileColumns",
  /** nt, nn: rows of b, and rows of its scales, from one group to the next. */
  "bRowsPerGroup",
  "bScaleRowsPerGroup",
  "outOffset",
  "outRowStride",
  "outGroupStride",
  "accumulate",
  "pieceDepth",
  "groupOffsets",
  /** tn: whether the scales of a and b stand in groups by the offsets. */
  "aIsGrouped",
  "bIsGrouped",
  "rowBlock",
  "columnBlock",
] as const;
export const GROUPED_SCALED_MATMUL_AT: Record<
  (typeof GROUPED_SCALED_MATMUL_SLOTS)[number],
  number
> = slotIndex(GROUPED_SCALED_MATMUL_SLOTS);

export interface GroupedScaledMatmulCall extends ScaledMatmulCall {
  readonly offsets: Tensor<"i32">;
}

interface GroupShape {
  /** Rows of one group's output (tn), else 0: they come from the offsets. */
  readonly rows: number;
  readonly columns: number;
  /** nt and nn; 0 in tn. */
  readonly depth: number;
  readonly bRowsPerGroup: number;
}

/** Launch the products of all groups. */
export function groupedScaledMatmul(device: Device, call: GroupedScaledMatmulCall): void {
  const { transposition, a, b, out, offsets } = call;
  const numGroups = offsets.columns - 1;
  assertMatrix(device, "groupedScaledMatmul offsets", offsets, ["i32"], 1, offsets.columns);
  assert(
    numGroups >= 1,
    `groupedScaledMatmul: offsets hold ${offsets.columns} entries; 2 at least`,
  );
  assertProductOperand(device, "groupedScaledMatmul a", a);
  assertProductOperand(device, "groupedScaledMatmul b", b);
  assertRowGroups(device, "groupedScaledMatmul a", a);
  assertRowGroups(device, "groupedScaledMatmul b", b);
  const isTn = transposition === "tn";
  const shape = isTn ? weightGradShape(call) : rowsShape(call, numGroups);
  const outRows = isTn ? shape.rows * numGroups : a.rows;
  assertMatrix(device, "groupedScaledMatmul out", out, ["f32"], outRows, shape.columns);
  assertOffsets("groupedScaledMatmul offsets", offsets, a.rows);
  // Along the tokens of a group of any length, only a tile of the whole matrix cuts nothing.
  const pieceDepth = pieceDepthOf(call, isTn ? a.rows : shape.depth);
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
    `groupedScaledMatmul/${variantOf(call)}`,
    [
      numGroups,
      shape.rows,
      shape.columns,
      shape.depth,
      ...operandSlots(a),
      ...operandSlots(b),
      shape.bRowsPerGroup,
      ceilDiv(shape.bRowsPerGroup, b.tileRows),
      out.byteOffset,
      out.rowStride,
      shape.rows * out.rowStride,
      call.accumulate === true ? 1 : 0,
      pieceDepth,
      offsets.byteOffset,
      a.groups.kind === "offsets" ? 1 : 0,
      b.groups.kind === "offsets" ? 1 : 0,
      rowBlock,
      columnBlock,
    ],
    numRowBlocks * ceilDiv(shape.columns, columnBlock),
  );
}

function rowsShape(call: GroupedScaledMatmulCall, numGroups: number): GroupShape {
  const { a, b, transposition } = call;
  const bRowsPerGroup = divExact(b.rows, numGroups);
  const [columns, depth] =
    transposition === "nt" ? [bRowsPerGroup, b.columns] : [b.columns, bRowsPerGroup];
  assert(
    a.columns === depth,
    `groupedScaledMatmul: a has ${a.columns} columns; the depth is ${depth}`,
  );
  assert(a.groups.kind === "none", "groupedScaledMatmul nt, nn: a has no groups");
  assert(
    b.groups.kind === "equal" && b.groups.rows === bRowsPerGroup,
    `groupedScaledMatmul nt, nn: b is in equal groups of ${bRowsPerGroup} rows`,
  );
  return { rows: 0, columns, depth, bRowsPerGroup };
}

function weightGradShape(call: GroupedScaledMatmulCall): GroupShape {
  const { a, b, out, offsets } = call;
  const rows = divExact(out.rows, offsets.columns - 1);
  assert(a.rows === b.rows, `groupedScaledMatmul tn: a has ${a.rows} rows, b ${b.rows}`);
  assert(
    a.columns === rows && b.columns === out.columns,
    `groupedScaledMatmul tn: out is [G·${rows}, ${out.columns}], ` +
      `not [G·${a.columns}, ${b.columns}]`,
  );
  assertTokenTiles("a", a, offsets);
  assertTokenTiles("b", b, offsets);
  return { rows, columns: out.columns, depth: 0, bRowsPerGroup: 0 };
}

/** Tiles begin at each group's first row, or one covers all rows. */
function assertTokenTiles(name: string, scaled: ScaledTensor, offsets: Tensor<"i32">): void {
  const { groups, tileRows, rows } = scaled;
  const fits =
    groups.kind === "offsets"
      ? groups.offsets.byteOffset === offsets.byteOffset &&
        groups.offsets.columns === offsets.columns
      : groups.kind === "none" && tileRows >= rows;
  assert(
    fits,
    `groupedScaledMatmul tn: ${name} is grouped by the product's offsets, or its ` +
      `tiles are as high as all ${rows} rows`,
  );
}
