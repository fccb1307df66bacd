/**
 * @file Causal attention of MLA in its naive form (keys and values expanded per head), forward and
 * backward.
 *
 *     score[i,j] = scale · (qNope[i]·kNope[j] + qRope[i]·keyRope[j])     j ≤ i, within a sequence
 *     out[i]     = Σ_j softmax(score[i,·])[j] · value[j]
 *
 *   T tokens = sequences × S; H heads; per head N nope, R rope, V value columns
 *   q_T_HNR        per head [nope | rope], rope already rotated
 *   kv_T_HNV       per head [nope key | value]
 *   keyRope_TR     rotated, shared by all heads
 *   out_T_HV
 *   dKeyRope_T_HR  one gradient a head; their sum is the gradient of keyRope
 *
 * Products may have operands rounded to bf16 (`products: "bf16"`, beside f32 tensors). Then, with
 * w_ij = exp(score_ij − max_i) and t_i = Σ_j w_ij in f32, and bf(·) the rounding to nearest,
 *
 *     score = bf(q)·bf(k)     out_i = (Σ_j bf(w_ij) bf(v_j)) ÷ t_i      g_i = bf(dOut_i ÷ t_i)
 *     dValue_j = Σ_i bf(w_ij) g_i       dW_ij = g_i · bf(v_j)
 *     dScore_ij = bf(scale · bf(w_ij) · (dW_ij − Σ_j bf(w_ij) dW_ij ÷ t_i))
 *
 * and dQ, dK from dScore, bf(k) and bf(q). Sums and outputs are f32. bf16 products may treat
 * subnormal numbers as zero.
 *
 * Backward recomputes the probabilities: nothing but the inputs is kept between the two. Every
 * output is overwritten, and overlaps neither an input nor another output. A task is one head of
 * one sequence. Source: DeepSeek-V2 report §2.1; facts of the V3 configuration in docs/numerics.md.
 *
 * Forward, a row of `out` depends on tokens j ≤ i alone, also where later ones are NaN or infinite:
 * a NaN key makes its own and all later rows of its head NaN, and no earlier one. Backward promises
 * nothing finer than one head of one sequence: where an input or `dOut` is not finite there, any of
 * that head's gradients in that sequence may be NaN.
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix } from "../door.ts";
import { slotIndex } from "../kernel.ts";

export const ATTENTION_SLOTS = [
  "numSequences",
  "seqLength",
  "numHeads",
  "nope",
  "rope",
  "value",
  "scale",
  "qOffset",
  "qRowStride",
  "kvOffset",
  "kvRowStride",
  "keyRopeOffset",
  "keyRopeRowStride",
  "outOffset",
  "outRowStride",
  "dOutOffset",
  "dOutRowStride",
  "dQOffset",
  "dQRowStride",
  "dKvOffset",
  "dKvRowStride",
  "dKeyRopeOffset",
  "dKeyRopeRowStride",
] as const;
export const ATTENTION_AT: Record<(typeof ATTENTION_SLOTS)[number], number> =
  slotIndex(ATTENTION_SLOTS);

/** In the slots behind `out` of a forward launch: a task's places are found for both directions. */
const NO_GRADIENTS: readonly number[] = new Array<number>(8).fill(0);

/** Head counts and widths of one attention layer. */
export interface AttentionShape {
  readonly numSequences: number;
  readonly numHeads: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
  /** Multiplies the scores before the softmax. */
  readonly scale: number;
}

export interface AttentionInputs {
  readonly q: Tensor<FloatType>;
  readonly kv: Tensor<FloatType>;
  readonly keyRope: Tensor<FloatType>;
}

/** What operands of attention's products are rounded to. */
export type AttentionProducts = "exact" | "bf16";

export const ATTENTION_VARIANTS = ["f32", "f64", "bf16"] as const;

export interface CausalAttentionCall extends AttentionInputs {
  /** "exact" if left out. */
  readonly products?: AttentionProducts;
  readonly shape: AttentionShape;
  readonly out: Tensor<FloatType>;
}

export interface CausalAttentionBackwardCall extends AttentionInputs {
  readonly products?: AttentionProducts;
  readonly shape: AttentionShape;
  readonly dOut: Tensor<FloatType>;
  readonly dQ: Tensor<FloatType>;
  readonly dKv: Tensor<FloatType>;
  readonly dKeyRope: Tensor<FloatType>;
}

/** out = attention(q, kv, keyRope). */
export function causalAttention(device: Device, call: CausalAttentionCall): void {
  const { q, kv, keyRope, out, shape } = call;
  const seqLength = assertInputs(device, "causalAttention", call, shape);
  const dtypes = [q.dtype];
  assertMatrix(device, "causalAttention out", out, dtypes, q.rows, shape.numHeads * shape.value);
  device.launch(
    `causalAttention/${variantOf(call)}`,
    [
      ...inputSlots(shape, seqLength, q, kv, keyRope),
      out.byteOffset,
      out.rowStride,
      ...NO_GRADIENTS,
    ],
    shape.numSequences * shape.numHeads,
  );
}

/** Gradients of the inputs from the gradient of the output. */
export function causalAttentionBackward(device: Device, call: CausalAttentionBackwardCall): void {
  const { q, kv, keyRope, dOut, dQ, dKv, dKeyRope, shape } = call;
  const name = "causalAttentionBackward";
  const seqLength = assertInputs(device, name, call, shape);
  const { numHeads, nope, rope, value } = shape;
  const dtypes = [q.dtype];
  assertMatrix(device, `${name} dOut`, dOut, dtypes, q.rows, numHeads * value);
  assertMatrix(device, `${name} dQ`, dQ, dtypes, q.rows, numHeads * (nope + rope));
  assertMatrix(device, `${name} dKv`, dKv, dtypes, q.rows, numHeads * (nope + value));
  assertMatrix(device, `${name} dKeyRope`, dKeyRope, dtypes, q.rows, numHeads * rope);
  device.launch(
    `${name}/${variantOf(call)}`,
    [
      ...inputSlots(shape, seqLength, q, kv, keyRope),
      0,
      0,
      dOut.byteOffset,
      dOut.rowStride,
      dQ.byteOffset,
      dQ.rowStride,
      dKv.byteOffset,
      dKv.rowStride,
      dKeyRope.byteOffset,
      dKeyRope.rowStride,
    ],
    shape.numSequences * numHeads,
  );
}

function variantOf({
  q,
  products,
}: Pick<CausalAttentionCall, "q" | "products">): (typeof ATTENTION_VARIANTS)[number] {
  if (products !== "bf16") return q.dtype;
  assert(q.dtype === "f32", `attention: products of ${q.dtype} tensors are not rounded to bf16`);
  return "bf16";
}

function assertInputs(
  device: Device,
  name: string,
  { q, kv, keyRope }: AttentionInputs,
  { numSequences, numHeads, nope, rope, value }: AttentionShape,
): number {
  assert(numSequences >= 1 && numHeads >= 1, `${name}: at least one sequence and one head`);
  const seqLength = divExact(q.rows, numSequences);
  const dtypes: FloatType[] = [q.dtype];
  assertMatrix(device, `${name} q`, q, dtypes, q.rows, numHeads * (nope + rope));
  assertMatrix(device, `${name} kv`, kv, dtypes, q.rows, numHeads * (nope + value));
  assertMatrix(device, `${name} keyRope`, keyRope, dtypes, q.rows, rope);
  return seqLength;
}

function inputSlots(
  shape: AttentionShape,
  seqLength: number,
  q: Tensor,
  kv: Tensor,
  keyRope: Tensor,
): number[] {
  return [
    shape.numSequences,
    seqLength,
    shape.numHeads,
    shape.nope,
    shape.rope,
    shape.value,
    shape.scale,
    q.byteOffset,
    q.rowStride,
    kv.byteOffset,
    kv.rowStride,
    keyRope.byteOffset,
    keyRope.rowStride,
  ];
}
