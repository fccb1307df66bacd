/** @file Conformance cases of causal attention, forward and backward. */
import { toleranceFor } from "../../numerics/tolerance.ts";
import {
  type AttentionShape,
  causalAttention,
  causalAttentionBackward,
} from "../attention/contract.ts";
import type { ConformanceCase } from "./conformance.ts";

interface AttentionSize {
  readonly shape: AttentionShape;
  readonly seqLength: number;
}

function size(
  numSequences: number,
  seqLength: number,
  numHeads: number,
  [nope, rope, value]: readonly [number, number, number],
): AttentionSize {
  const scale = (nope + rope) ** -0.5;
  return { shape: { numSequences, numHeads, nope, rope, value, scale }, seqLength };
}

/**
 * A single token; widths off every tile edge; more than one block of queries; the small preset's
 * widths; DeepSeek-V3's.
 */
const SIZES: readonly AttentionSize[] = [
  size(1, 1, 1, [4, 2, 3]),
  size(2, 13, 3, [7, 6, 5]),
  size(1, 150, 2, [32, 16, 32]),
  size(3, 64, 2, [16, 8, 24]),
  size(1, 65, 1, [1, 2, 1]),
  size(1, 100, 1, [128, 64, 128]),
];

/**
 * The gradients of a single token's scores are zero: only rounding would be left to compare. Those
 * of two tokens nearly cancel now and then, so there are several of them.
 */
const BACKWARD_SIZES: readonly AttentionSize[] = [
  size(8, 2, 2, [4, 2, 3]),
  ...SIZES.filter(({ seqLength }) => seqLength > 1),
];

function describe({ shape, seqLength }: AttentionSize): string {
  const { numSequences, numHeads, nope, rope, value } = shape;
  return `${numSequences}×${seqLength} tokens, ${numHeads} heads of ${nope}+${rope}/${value}`;
}

type Products = "f32" | "bf16";

/** The call's choice of products for a variant. */
function productsOf(variant: Products): { readonly products?: "bf16" } {
  return variant === "bf16" ? { products: "bf16" } : {};
}

function forwardCase(attentionSize: AttentionSize, variant: Products): ConformanceCase {
  const { shape, seqLength } = attentionSize;
  const tokens = shape.numSequences * seqLength;
  const products = productsOf(variant);
  return {
    kernel: `causalAttention/${variant}`,
    title: describe(attentionSize),
    tolerance: toleranceFor("attention", variant, seqLength),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const q = make.normal("f32", [tokens, shape.numHeads * (shape.nope + shape.rope)]);
      const kv = make.normal("f32", [tokens, shape.numHeads * (shape.nope + shape.value)]);
      const keyRope = make.normal("f32", [tokens, shape.rope]);
      const out = make.poisoned("f32", [tokens, shape.numHeads * shape.value]);
      return {
        run: (device) => causalAttention(device, { q, kv, keyRope, out, shape, ...products }),
        outputs: { out },
      };
    },
  };
}

function backwardCase(attentionSize: AttentionSize, variant: Products): ConformanceCase {
  const { shape, seqLength } = attentionSize;
  const { numHeads, nope, rope, value } = shape;
  const tokens = shape.numSequences * seqLength;
  return {
    kernel: `causalAttentionBackward/${variant}`,
    title: describe(attentionSize),
    tolerance: toleranceFor("attention", variant, seqLength),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const q = make.normal("f32", [tokens, numHeads * (nope + rope)]);
      const kv = make.normal("f32", [tokens, numHeads * (nope + value)]);
      const keyRope = make.normal("f32", [tokens, rope]);
      const dOut = make.normal("f32", [tokens, numHeads * value]);
      const dQ = make.poisoned("f32", [tokens, numHeads * (nope + rope)]);
      const dKv = make.poisoned("f32", [tokens, numHeads * (nope + value)]);
      const dKeyRope = make.poisoned("f32", [tokens, numHeads * rope]);
      const products = productsOf(variant);
      const call = { q, kv, keyRope, dOut, dQ, dKv, dKeyRope, shape, ...products };
      return {
        run: (device) => causalAttentionBackward(device, call),
        outputs: { dQ, dKv, dKeyRope },
      };
    },
  };
}

/**
 * Values that are not finite reach the rows from their own on, and no earlier one: also none of the
 * same block of queries. In one head of two; an infinity, then NaN values, then a NaN key.
 */
const NOT_FINITE: readonly ConformanceCase[] = (["f32", "bf16"] as const).map((variant) => ({
  kernel: `causalAttention/${variant}`,
  title: "values and a key that are not finite, amid blocks of queries",
  tolerance: toleranceFor("attention", variant, 200),
  prepare(make): ReturnType<ConformanceCase["prepare"]> {
    const { shape } = size(1, 200, 2, [8, 4, 20]);
    const tokens = 200;
    const keyWidth = shape.nope + shape.value;
    const q = make.normal("f32", [tokens, shape.numHeads * (shape.nope + shape.rope)]);
    const kv = make.filled("f32", [tokens, shape.numHeads * keyWidth], (token, column) => {
      const value = make.random.normal();
      if (token === 90 && column === shape.nope + 3) return Number.POSITIVE_INFINITY;
      if (token === 150 && column >= shape.nope && column < keyWidth - 2) return Number.NaN;
      return token === 199 && column === 1 ? Number.NaN : value;
    });
    const keyRope = make.normal("f32", [tokens, shape.rope]);
    const out = make.poisoned("f32", [tokens, shape.numHeads * shape.value]);
    return {
      run: (device) =>
        causalAttention(device, { q, kv, keyRope, out, shape, ...productsOf(variant) }),
      outputs: { out },
    };
  },
}));

export const ATTENTION_CASES: readonly ConformanceCase[] = [
  ...(["f32", "bf16"] as const).flatMap((variant) => [
    ...SIZES.map((attentionSize) => forwardCase(attentionSize, variant)),
    ...BACKWARD_SIZES.map((attentionSize) => backwardCase(attentionSize, variant)),
  ]),
  ...NOT_FINITE,
];
