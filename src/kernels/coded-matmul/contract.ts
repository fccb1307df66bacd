/**
 * @file Products of activations with coded weights (tensor/coded-weight.ts), declared once: what
 * inference from int8, int4 and FP8 weights is made of.
 *
 *     out_MN (=|+=) Σ_g scale(n, g) · Σ_{k in group g} a_MK · (code_NK + offset(n, g))
 *
 *   a        bf16, not quantised
 *   weights  [N, K], or with `offsets` [G·N, K]: one matrix a group of rows, as `groupedMatmul` has
 *   out      f32, overwritten, or added to with `accumulate`
 *
 * The order in which an element is summed depends on K and the size of the weight's groups alone,
 * so a row has the same bits alone and beside others. K = 0 gives zeros (or leaves `out`). A NaN or
 * an infinity in `a` stays in its row. A group of rows may be empty; rows beyond offsets[G] are not
 * written. `out` overlaps no input.
 *
 * Differs: the reference sums in f64. x64 sums a group's products in f32 as `vdpbf16ps` does, adds
 * the offset times the sum of the group's activations, multiplies by the scale, and adds the groups
 * in rising order. The portable tier multiplies f32 values, each rounded once after its scale.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import {
  assertCoded,
  CODED_FORMATS,
  type CodedFormat,
  type CodedWeight,
  codedLayout,
  PANEL_ROWS,
} from "../../tensor/coded-weight.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOffsets, assertOperand } from "../door.ts";
import { mostRowBlocks } from "../grouped-matmul/contract.ts";
import { slotIndex } from "../kernel.ts";
import { planBlocks } from "../matmul/blocks.ts";

/** "int8", "int4", "e4m3", and ".offsets" behind the first two for asymmetric weights. */
export const CODED_MATMUL_VARIANTS: readonly string[] = CODED_FORMATS.flatMap((format) =>
  format === "e4m3" ? [format] : [format, `${format}.offsets`],
);

export const CODED_MATMUL_SLOTS = [
  "columns",
  "depth",
  "groupSize",
  "aOffset",
  "aRowStride",
  "codesOffset",
  "panelCodeBytes",
  "scalesOffset",
  "panelScales",
  "offsetsOffset",
  "panelsPerMatrix",
  "outOffset",
  "outRowStride",
  "accumulate",
  "rows",
  /** Where the first row of each group stands; −1 for one matrix. */
  "rowOffsets",
  "numMatrices",
  "rowBlock",
  "columnBlock",
] as const;
export const CODED_MATMUL_AT: Record<(typeof CODED_MATMUL_SLOTS)[number], number> =
  slotIndex(CODED_MATMUL_SLOTS);

export interface CodedMatmulCall {
  readonly a: Tensor<"bf16">;
  readonly weight: CodedWeight;
  readonly out: Tensor<"f32">;
  /** Add to `out` instead of overwriting it. */
  readonly accumulate?: boolean;
  /** First row of each group, [1, G+1]: group g is multiplied by matrix g of the weight. */
  readonly offsets?: Tensor<"i32">;
}

/** A variant taken apart. */
export function parseCodedVariant(variant: string): {
  readonly format: CodedFormat;
  readonly hasOffsets: boolean;
} {
  assert(CODED_MATMUL_VARIANTS.includes(variant), `unknown coded matmul variant ${variant}`);
  const [format, offsets] = variant.split(".") as [CodedFormat, string?];
  return { format, hasOffsets: offsets !== undefined };
}

/** Launch the product, or those of all groups. */
export function codedMatmul(device: Device, call: CodedMatmulCall): void {
  const { a, weight, out, offsets } = call;
  const { rows: totalRows, columns: depth, numMatrices, format } = weight;
  const columns = divExact(totalRows, numMatrices);
  assertCoded("codedMatmul weight", weight);
  for (const part of [weight.codes, weight.scales, weight.offsets]) {
    if (part !== null) assertOperand(device, "codedMatmul weight", part);
  }
  assertMatrix(device, "codedMatmul a", a, ["bf16"], a.rows, depth);
  assertMatrix(device, "codedMatmul out", out, ["f32"], a.rows, columns);
  assertRowGroups(device, call);
  const { rowBlock, columnBlock } = planBlocks({
    rows: Math.max(1, ceilDiv(a.rows, numMatrices)),
    columns,
    depth,
    numThreads: device.numThreads,
    batchCount: Math.min(numMatrices, Math.max(1, a.rows)),
  });
  assert(columnBlock % PANEL_ROWS === 0, "blocks of columns are whole panels");
  const numRowBlocks =
    offsets === undefined
      ? ceilDiv(a.rows, rowBlock)
      : mostRowBlocks(a.rows, numMatrices, rowBlock);
  if (numRowBlocks === 0 || columns === 0) return;
  const layout = codedLayout(weight);
  device.launch(
    `codedMatmul/${format}${weight.asymmetric ? ".offsets" : ""}`,
    [
      columns,
      depth,
      weight.groupSize,
      a.byteOffset,
      a.rowStride,
      weight.codes.byteOffset,
      layout.panelCodeBytes,
      weight.scales.byteOffset,
      layout.panelScales,
      weight.offsets?.byteOffset ?? 0,
      layout.panelsPerMatrix,
      out.byteOffset,
      out.rowStride,
      call.accumulate === true ? 1 : 0,
      a.rows,
      offsets?.byteOffset ?? -1,
      numMatrices,
      rowBlock,
      columnBlock,
    ],
    numRowBlocks * ceilDiv(columns, columnBlock),
  );
}

/** One matrix, or the rows of each. */
function assertRowGroups(device: Device, { a, weight, offsets }: CodedMatmulCall): void {
  const { numMatrices } = weight;
  if (offsets === undefined) {
    assert(numMatrices === 1, `codedMatmul: ${numMatrices} matrices need offsets of their rows`);
    return;
  }
  assertMatrix(device, "codedMatmul offsets", offsets, ["i32"], 1, numMatrices + 1);
  assertOffsets("codedMatmul offsets", offsets, a.rows);
}
