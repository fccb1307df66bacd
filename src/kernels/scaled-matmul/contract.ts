/**
 * @file Products of FP8 matrices with scales, declared once.
 *
 *     out_MN (=|+=) Σ_p scaleA(m, p) · scaleB(p, n) · Σ_{k in piece p} codeA · codeB
 *
 *     nt  a_MK b_NK   Fprop: activations 1×128, weights 128×128
 *     nn  a_MK b_KN   Dgrad: gradients 1×128, weights 128×128
 *     tn  a_KM b_KN   Wgrad: both 128×1, K being the tokens
 *
 *   a, b   E4M3 or E5M2, not necessarily the same; any tiles (tensor/scaled-tensor.ts)
 *   out    f32, overwritten, or added to with `accumulate`
 *
 * Pieces. K is cut into pieces of the promotion interval, or of the depth of a tile along K where
 * that is smaller; a tile or interval as deep as K cuts nothing. The depths must nest: each is a
 * multiple of the smallest. Promotion multiplies a piece's sum by the product of its two scales and
 * adds it to a float32 accumulator that starts at zero; that is added to `out`, or written.
 *
 * Accumulation within a piece. "f32": products exact, sums float32. "tensorCore": the bit model of
 * numerics/accumulate.ts (E4M3 only, pieces in multiples of 32), then
 * acc = f32(acc + f32(sum · f32(scaleA · scaleB))); exact to the bit, by the reference alone, slow.
 *
 * The order in which an element is summed depends on K and the depth of the pieces alone, so a row
 * does not depend on what else stands in the product, on strides or on threads; codes of zero
 * appended along K change no bit (their scales being finite). K = 0 gives zeros (or leaves `out`).
 * A NaN code, an infinite scale times zero, and the infinities of E5M2 give NaN as IEEE 754 has it.
 * `out` overlaps no input; a may be b.
 *
 * Differs in "f32": the reference sums in f64; other implementations in f32.
 * Source: DeepSeek-V3 report §3.3.2.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, isIntegerIn } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { ACCUMULATION_STEP } from "../../numerics/accumulate.ts";
import { SCALE_BLOCK } from "../../numerics/scales.ts";
import { assertScaled, type ScaledTensor } from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOperand } from "../door.ts";
import { slotIndex } from "../kernel.ts";
import { TRANSPOSITIONS, type Transposition } from "../matmul/block-multiplier.ts";
import { planBlocks } from "../matmul/blocks.ts";

/** Formats of a product's operands. */
export const PRODUCT_FORMATS = ["e4m3", "e5m2"] as const;
export type ProductFormat = (typeof PRODUCT_FORMATS)[number];

export const ACCUMULATIONS = ["f32", "tensorCore"] as const;
export type Accumulation = (typeof ACCUMULATIONS)[number];

/** "nt.e4m3.e4m3" and the like; "nt.tensorCore" for the bit model. */
export const SCALED_MATMUL_VARIANTS: readonly string[] = TRANSPOSITIONS.flatMap((transposition) => [
  ...PRODUCT_FORMATS.flatMap((a) => PRODUCT_FORMATS.map((b) => `${transposition}.${a}.${b}`)),
  `${transposition}.tensorCore`,
]);

/** One operand in the slots of a launch: a's names; b's follow in the same order. */
export const OPERAND_SLOTS = [
  "aCodesOffset",
  "aRowStride",
  "aScalesOffset",
  "aScaleRowStride",
  "aTileRows",
  "aTileColumns",
] as const;

export const SCALED_MATMUL_SLOTS = [
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
  "outOffset",
  "outRowStride",
  "accumulate",
  "pieceDepth",
  "rowBlock",
  "columnBlock",
] as const;
export const SCALED_MATMUL_AT: Record<(typeof SCALED_MATMUL_SLOTS)[number], number> =
  slotIndex(SCALED_MATMUL_SLOTS);

/** How a product is summed. */
export interface SumRule {
  /** Products summed before promotion: a multiple of 32, or Infinity; 128 if left out. */
  readonly promotionInterval?: number;
  /** "f32" if left out. */
  readonly accumulation?: Accumulation;
}

export interface ScaledMatmulCall extends SumRule {
  readonly transposition: Transposition;
  readonly a: ScaledTensor;
  readonly b: ScaledTensor;
  readonly out: Tensor<"f32">;
  /** Add to `out` instead of overwriting it. */
  readonly accumulate?: boolean;
}

/** Launch a product of scaled operands without groups. */
export function scaledMatmul(device: Device, call: ScaledMatmulCall): void {
  const { transposition, a, b, out } = call;
  const [rows, depth] = transposition === "tn" ? [a.columns, a.rows] : [a.rows, a.columns];
  const [bDepth, columns] = transposition === "nt" ? [b.columns, b.rows] : [b.rows, b.columns];
  assertProductOperand(device, "scaledMatmul a", a);
  assertProductOperand(device, "scaledMatmul b", b);
  assert(
    a.groups.kind === "none" && b.groups.kind === "none",
    "scaledMatmul: operands have no groups; groupedScaledMatmul takes those that have",
  );
  assert(
    depth === bDepth,
    `scaledMatmul ${transposition}: depths of a (${depth}) and b (${bDepth})`,
  );
  assertMatrix(device, "scaledMatmul out", out, ["f32"], rows, columns);
  const pieceDepth = pieceDepthOf(call, depth);
  if (rows === 0 || columns === 0) return;
  const { rowBlock, columnBlock } = planBlocks({
    rows,
    columns,
    depth,
    numThreads: device.numThreads,
  });
  device.launch(
    `scaledMatmul/${variantOf(call)}`,
    [
      rows,
      columns,
      depth,
      ...operandSlots(a),
      ...operandSlots(b),
      out.byteOffset,
      out.rowStride,
      call.accumulate === true ? 1 : 0,
      pieceDepth,
      rowBlock,
      columnBlock,
    ],
    ceilDiv(rows, rowBlock) * ceilDiv(columns, columnBlock),
  );
}

/** The variant that a call asks for; the bit model takes E4M3 alone. */
export function variantOf(
  call: Pick<ScaledMatmulCall, "transposition" | "a" | "b" | "accumulation">,
): string {
  const { transposition, a, b, accumulation = "f32" } = call;
  if (accumulation === "f32") return `${transposition}.${a.format}.${b.format}`;
  assert(
    a.format === "e4m3" && b.format === "e4m3",
    `tensorCore accumulation is modelled for E4M3, not for ${a.format} by ${b.format}`,
  );
  return `${transposition}.tensorCore`;
}

/** A scaled tensor in the format of a product's operand. */
export function assertProductOperand(device: Device, name: string, scaled: ScaledTensor): void {
  assert(
    (PRODUCT_FORMATS as readonly string[]).includes(scaled.format),
    `${name} is ${scaled.format}; allowed: ${PRODUCT_FORMATS.join(", ")}`,
  );
  assertScaled(name, device.memory, scaled);
  assertOperand(device, `${name} codes`, scaled.codes);
  assertOperand(device, `${name} scales`, scaled.scales);
}

/** The slots of one operand, in the order of `OPERAND_SLOTS`. */
export function operandSlots({ codes, scales, tileRows, tileColumns }: ScaledTensor): number[] {
  const { byteOffset, rowStride } = codes;
  return [byteOffset, rowStride, scales.byteOffset, scales.rowStride, tileRows, tileColumns];
}

/** Products between two promotions: the least of the interval and the tiles' depths below K. */
export function pieceDepthOf(
  call: Pick<ScaledMatmulCall, "transposition" | "a" | "b" | keyof SumRule>,
  depth: number,
): number {
  const { transposition, a, b, promotionInterval = SCALE_BLOCK, accumulation = "f32" } = call;
  assert(
    promotionInterval === Infinity ||
      (isIntegerIn(promotionInterval, ACCUMULATION_STEP, 2 ** 30) &&
        promotionInterval % ACCUMULATION_STEP === 0),
    `promotionInterval (${promotionInterval}) must be Infinity or a multiple of 32`,
  );
  const aDepth = transposition === "tn" ? a.tileRows : a.tileColumns;
  const bDepth = transposition === "nt" ? b.tileColumns : b.tileRows;
  const cuts = [promotionInterval, aDepth, bDepth].filter((cut) => cut < depth);
  const pieceDepth = Math.min(Math.max(1, depth), ...cuts);
  assert(
    cuts.every((cut) => cut % pieceDepth === 0),
    `the depths of tiles (${aDepth}, ${bDepth}) and the promotion interval ` +
      `(${promotionInterval}) must be multiples of the smallest of them`,
  );
  assert(
    accumulation === "f32" || cuts.length === 0 || pieceDepth % ACCUMULATION_STEP === 0,
    `tensorCore accumulation needs pieces in multiples of 32, not of ${pieceDepth}`,
  );
  return pieceDepth;
}
