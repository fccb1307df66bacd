/**
 * @file Matrix products, declared once.
 *
 *     out_BMN (=|+=) Σ_k  A · B        nn: a_BMK b_BKN   nt: a_BMK b_BNK   tn: a_BKM b_BKN
 *
 *   B batch (1 unless `batch` is given), M rows and N columns of the output, K depth
 *   a, b   f32 or bf16, both the same; f64 for gradient checks
 *   out    f32 (f64 for f64), overwritten, or added to with `accumulate`
 *
 * The order in which an output element is summed depends on K alone, so a row's result does not
 * depend on what else stands in the product, on strides, or on the number of threads; and terms of
 * zero appended along K change no bit (generation over a longer cache relies on it). K = 0 gives
 * zeros (or leaves `out`). NaN and infinities propagate as IEEE 754 has it: also through a factor
 * of zero, 0 · NaN and 0 · ∞ being NaN. `out` overlaps neither input, nor one place of a batch
 * another; `a` may be `b`.
 *
 * Differs: the reference sums in f64; other implementations in f32, bf16 products exact before the
 * sum.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, isIntegerIn } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertOperand } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { TRANSPOSITIONS, type Transposition } from "./block-multiplier.ts";
import { planBlocks } from "./blocks.ts";

export const MATMUL_SLOTS = [
  "batchCount",
  "rows",
  "columns",
  "depth",
  "aOffset",
  "aRowStride",
  "aBatchStride",
  "bOffset",
  "bRowStride",
  "bBatchStride",
  "outOffset",
  "outRowStride",
  "outBatchStride",
  "accumulate",
  "rowBlock",
  "columnBlock",
] as const;
export const MATMUL_AT: Record<(typeof MATMUL_SLOTS)[number], number> = slotIndex(MATMUL_SLOTS);

/** Operand dtypes a product can have. */
export const MATMUL_DTYPES = ["f32", "bf16", "f64"] as const;
export type MatmulDType = (typeof MATMUL_DTYPES)[number];

/** "nt.bf16" and the like. */
export const MATMUL_VARIANTS: readonly string[] = TRANSPOSITIONS.flatMap((transposition) =>
  MATMUL_DTYPES.map((dtype) => `${transposition}.${dtype}`),
);

export interface MatmulCall {
  readonly transposition: Transposition;
  readonly a: Tensor<MatmulDType>;
  readonly b: Tensor<MatmulDType>;
  readonly out: Tensor<"f32" | "f64">;
  /** Add to `out` instead of overwriting it. */
  readonly accumulate?: boolean;
  /**
   * The same product at `count` places: elements from one place to the next in each operand. The
   * tensors above give the first place; 0 repeats an operand. The places of `out` are disjoint: one
   * behind the other, or side by side within its rows.
   */
  readonly batch?: {
    readonly count: number;
    readonly aStride: number;
    readonly bStride: number;
    readonly outStride: number;
  };
}

/** Whole counts and strides, and places of the output that no two tasks write. */
function assertBatch(out: Tensor, batch: NonNullable<MatmulCall["batch"]>): void {
  const { count, outStride } = batch;
  assert(
    isIntegerIn(count, 1, Number.MAX_SAFE_INTEGER),
    `matmul: batch count (${count}) is 1 or more`,
  );
  for (const name of ["aStride", "bStride", "outStride"] as const) {
    const isWhole = isIntegerIn(batch[name], 0, Number.MAX_SAFE_INTEGER);
    assert(isWhole, `matmul: batch ${name} (${batch[name]}) must be a whole number >= 0`);
  }
  const { rows, columns, rowStride } = out;
  if (count === 1 || rows === 0 || columns === 0) return;
  const isStacked = outStride >= (rows - 1) * rowStride + columns;
  const isSideBySide = outStride >= columns && (count - 1) * outStride + columns <= rowStride;
  assert(
    isStacked || isSideBySide,
    `matmul: ${count} outputs of ${rows}×${columns} (row stride ${rowStride}), ` +
      `${outStride} apart, overlap`,
  );
}

/** Launch a matrix product. */
export function matmul(device: Device, call: MatmulCall): void {
  const { transposition, a, b, out } = call;
  const batch = call.batch ?? { count: 1, aStride: 0, bStride: 0, outStride: 0 };
  const [rows, depth] = transposition === "tn" ? [a.columns, a.rows] : [a.rows, a.columns];
  const [bDepth, columns] = transposition === "nt" ? [b.columns, b.rows] : [b.rows, b.columns];
  assert(a.dtype === b.dtype, `matmul: a (${a.dtype}) and b (${b.dtype}) must share a dtype`);
  assert(
    (a.dtype === "f64") === (out.dtype === "f64"),
    `matmul: out is f64 exactly if a (${a.dtype}) is; it is ${out.dtype}`,
  );
  assert(depth === bDepth, `matmul ${transposition}: depths of a (${depth}) and b (${bDepth})`);
  assert(
    out.rows === rows && out.columns === columns,
    `matmul ${transposition}: out is ${out.rows}×${out.columns}, not ${rows}×${columns}`,
  );
  assertBatch(out, batch);
  assertOperand(device, "matmul a", a, batch.count, batch.aStride);
  assertOperand(device, "matmul b", b, batch.count, batch.bStride);
  assertOperand(device, "matmul out", out, batch.count, batch.outStride);
  if (rows === 0 || columns === 0) return;
  const { rowBlock, columnBlock } = planBlocks({
    rows,
    columns,
    depth,
    numThreads: device.numThreads,
    batchCount: batch.count,
  });
  device.launch(
    `matmul/${transposition}.${a.dtype}`,
    [
      batch.count,
      rows,
      columns,
      depth,
      a.byteOffset,
      a.rowStride,
      batch.aStride,
      b.byteOffset,
      b.rowStride,
      batch.bStride,
      out.byteOffset,
      out.rowStride,
      batch.outStride,
      call.accumulate === true ? 1 : 0,
      rowBlock,
      columnBlock,
    ],
    batch.count * ceilDiv(rows, rowBlock) * ceilDiv(columns, columnBlock),
  );
}
