/**
 * @file Between the products of attention over AMX tiles: a stripe's weights from its scores, and
 * gradients of scores from those of weights. A vector is a key, a lane a query.
 *
 *     weight = 2^(scale · (score − top))    inverse = 1 ÷ Σ weight, unrounded
 *     gradient = weight · (g − inverse · Σ weight · g) · scale
 *
 * They leave as bf16, the nearest, ties away from zero, in two forms: `rows`, a line a key with
 * words of queries i and i + 16, the left operand of sums over queries; `words`, of two
 * neighbouring keys, the right operand of sums over keys.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import {
  type Gp,
  k,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  zmm,
} from "../../codegen/x64/operands.ts";
import { emitJoinUpper } from "../latent-attention/x64-frame.ts";
import { MINUS_INFINITY } from "../latent-attention/x64-softmax.ts";
import { emitClear } from "../matmul/x64-pack.ts";
import {
  BLOCK,
  constant,
  emitBlockAddress,
  inRound,
  inScratch,
  KEPT,
  LANES,
  LINE_BYTES,
  STRIPE_BYTES,
  TILED_AT,
  type TiledCode,
} from "./x64-frame.ts";

const FRACTION_BITS = 23;
const AT = {
  least: zmm(20),
  scale: zmm(21),
  shift: zmm(22),
  /** Of the polynomial, highest power first; the last one is 1. */
  coefficients: [zmm(23), zmm(24), zmm(25), zmm(26), zmm(27)],
  half: zmm(28),
  upper: zmm(29),
} as const;
const ONE = AT.coefficients[4];

/** Minus infinity for the keys of the stripe's own block that come after a query. */
export function emitHideKeys({ a }: TiledCode): void {
  const to = r.rdx;
  emitBlockAddress(a, to, TILED_AT.scores, BLOCK * STRIPE_BYTES);
  a.mov(r.rax, MINUS_INFINITY);
  a.v("vpbroadcastd r32", [zmm(0), r.rax]);
  for (let key = 1; key < BLOCK; key++) {
    const first = mem(to, key * STRIPE_BYTES);
    if (key >= LANES) a.v("vmovups", [first, zmm(0)]);
    if (key % LANES === 0) continue;
    a.mov(r.rax, 2 ** (key % LANES) - 1);
    a.kmovw(k(1), r.rax);
    const half = mem(to, key * STRIPE_BYTES + (key < LANES ? 0 : LINE_BYTES));
    a.v("vmovups", [half, zmm(0)], merging(k(1)));
  }
}

/** left = keys up to the stripe's last query. */
function emitKeysLeft(a: X64, left: Gp): void {
  a.lea(left, mem(KEPT.start, BLOCK));
}

function scoreAt(scores: Gp, key: number, half: number): Memory {
  return mem(scores, key * STRIPE_BYTES + half * LINE_BYTES);
}

/** Weights as `words` or `rows`, and `inverse`; `emitBeside` is for four keys, and has rax. */
export function emitWeights(code: TiledCode, form: "words" | "rows", emitBeside: () => void): void {
  const { a, at } = code;
  const [scores, left, to] = [r.rsi, r.rcx, r.rdx];
  const sums = [zmm(4), zmm(5), zmm(6), zmm(7)];
  emitNegatedTops(code);
  emitLoadConstants(code);
  for (const sum of sums) a.v("vpxord", [sum, sum, sum]);
  loadSlot(a, scores, TILED_AT.scores);
  if (form === "words") loadSlot(a, to, TILED_AT.weights);
  else a.mov(to, inRound(code, "weights"));
  emitKeysLeft(a, left);
  const emitPair = (): void => {
    const weights = emitPowers(a, scores);
    for (const [index, weight] of weights.entries()) {
      a.v("vaddps", [sums[index]!, sums[index]!, weight]);
    }
    emitRoundUp(a, weights);
    if (form === "words") emitStoreWords(a, to, weights);
    else emitStoreRows(a, to, weights);
    a.add(scores, 2 * STRIPE_BYTES);
    a.add(to, 2 * LINE_BYTES);
  };
  a.countdown(left, 4, () => {
    emitPair();
    emitPair();
    emitBeside();
  });
  for (let half = 0; half < 2; half++) {
    const total = sums[half]!;
    a.v("vaddps", [total, total, sums[2 + half]!]);
    a.v("vdivps", [total, ONE, total]);
    a.v("vmovups", [inScratch(at.inverse + half * LINE_BYTES), total]);
  }
}

/** The largest score of each query, negated, in zmm0 and zmm1. */
function emitNegatedTops({ a }: TiledCode): void {
  const [scores, left] = [r.rsi, r.rcx];
  loadSlot(a, scores, TILED_AT.scores);
  emitKeysLeft(a, left);
  a.mov(r.rax, MINUS_INFINITY);
  for (let top = 0; top < 4; top++) a.v("vpbroadcastd r32", [zmm(top), r.rax]);
  a.countdown(left, 4, () => {
    for (let key = 0; key < 4; key++) {
      for (let half = 0; half < 2; half++) {
        const top = zmm(2 * (key % 2) + half);
        a.v("vmaxps", [top, top, scoreAt(scores, key, half)]);
      }
    }
    a.add(scores, 4 * STRIPE_BYTES);
  });
  a.v("vpxord", [zmm(4), zmm(4), zmm(4)]);
  for (let half = 0; half < 2; half++) {
    a.v("vmaxps", [zmm(half), zmm(half), zmm(2 + half)]);
    a.v("vsubps", [zmm(half), zmm(4), zmm(half)]);
  }
}

function emitLoadConstants(code: TiledCode): void {
  const { a } = code;
  const { least, scale, shift, coefficients, half, upper } = AT;
  a.v("vbroadcastss", [least, constant(code, "least")]);
  a.v("vbroadcastss", [scale, constant(code, "scaleLog2")]);
  a.v("vbroadcastss", [shift, constant(code, "shift")]);
  for (const [index, name] of (["c4", "c3", "c2", "c1", "c0"] as const).entries()) {
    a.v("vbroadcastss", [coefficients[index]!, constant(code, name)]);
  }
  a.v("vbroadcastss", [half, constant(code, "half")]);
  a.v("vbroadcastss", [upper, constant(code, "upper")]);
}

/**
 * 2^(scale · (score − top)) of two keys, as `exp2OfNonPositive` has it: [key][half of the stripe],
 * in zmm8..11; clobbers zmm12..19. The scale is part of two fused operations: at the top itself the
 * difference is 0 and the weight 1, whatever it is.
 */
function emitPowers(a: X64, scores: Gp): readonly Vector[] {
  const { least, scale, shift, coefficients } = AT;
  const all = [0, 1, 2, 3];
  const [x, shifted, power] = [8, 12, 16].map((first) => all.map((at) => zmm(first + at))) as [
    Vector[],
    Vector[],
    Vector[],
  ];
  const each = (emit: (index: number) => void): void => all.forEach(emit);
  each((at) => a.v("vaddps", [x[at]!, zmm(at % 2), scoreAt(scores, at >> 1, at % 2)]));
  // The difference comes second, so that NaN passes.
  each((at) => a.v("vmaxps", [x[at]!, least, x[at]!]));
  each((at) => {
    a.v("vmovaps", [shifted[at]!, shift]);
    a.v("vfmadd231ps", [shifted[at]!, x[at]!, scale]);
  });
  each((at) => a.v("vsubps", [power[at]!, shifted[at]!, shift]));
  each((at) => a.v("vfmsub213ps", [x[at]!, scale, power[at]!]));
  each((at) => a.v("vmovaps", [power[at]!, coefficients[0]]));
  for (const coefficient of coefficients.slice(1)) {
    each((at) => a.v("vfmadd213ps", [power[at]!, x[at]!, coefficient]));
  }
  each((at) => a.v("vpslld", [shifted[at]!, shifted[at]!, FRACTION_BITS]));
  each((at) => a.v("vmulps", [x[at]!, power[at]!, shifted[at]!]));
  return x;
}

/** So that the upper halves are the nearest bf16. NaN stays NaN: it is the processor's own. */
function emitRoundUp(a: X64, values: readonly Vector[]): void {
  for (const value of values) a.v("vpaddd", [value, value, AT.half]);
}

/** Two keys' values, [key][half of the stripe], at `to`; clobbers zmm12 and zmm13. */
function emitStoreWords(a: X64, to: Gp, values: readonly Vector[]): void {
  for (let half = 0; half < 2; half++) {
    const word = zmm(12 + half);
    emitJoinUpper(a, word, values[half]!, values[2 + half]!, AT.upper);
    a.v("vmovups", [mem(to, half * LINE_BYTES), word]);
  }
}

function emitStoreRows(a: X64, to: Gp, values: readonly Vector[]): void {
  for (let key = 0; key < 2; key++) {
    const word = zmm(12 + key);
    emitJoinUpper(a, word, values[2 * key]!, values[2 * key + 1]!, AT.upper);
    a.v("vmovups", [mem(to, key * LINE_BYTES), word]);
  }
}

/** Two keys' weights, [key][half of the stripe], from their rows, in zmm16..19. */
function emitLoadWeights(a: X64, weights: Gp): readonly Vector[] {
  return [0, 1].flatMap((key) => {
    const [low, high] = [zmm(16 + 2 * key), zmm(17 + 2 * key)];
    a.v("vmovups", [high, mem(weights, key * LINE_BYTES)]);
    a.v("vpslld", [low, high, 16]);
    a.v("vpandd", [high, high, AT.upper]);
    return [low, high];
  });
}

/** Gradients of the weights, which stand where scores did, to those of scores, in both forms. */
export function emitScoreGradients(code: TiledCode): void {
  const { a, at } = code;
  const [gradients, weights, left, rows, words] = [r.rsi, r.r8, r.rcx, r.rdx, r.r9];
  const start = (): void => {
    loadSlot(a, gradients, TILED_AT.scores);
    a.mov(weights, inRound(code, "weights"));
    emitKeysLeft(a, left);
  };
  const advance = (): void => {
    a.add(gradients, 2 * STRIPE_BYTES);
    a.add(weights, 2 * LINE_BYTES);
  };
  emitLoadConstants(code);
  a.v("vbroadcastss", [AT.scale, constant(code, "scale")]);
  emitClear(a, 5);
  start();
  a.countdown(left, 2, () => {
    for (const [index, weight] of emitLoadWeights(a, weights).entries()) {
      a.v("vfmadd231ps", [zmm(index), weight, scoreAt(gradients, index >> 1, index % 2)]);
    }
    advance();
  });
  // Means, negated.
  for (let half = 0; half < 2; half++) {
    a.v("vaddps", [zmm(half), zmm(half), zmm(2 + half)]);
    a.v("vmulps", [zmm(half), zmm(half), inScratch(at.inverse + half * LINE_BYTES)]);
    a.v("vsubps", [zmm(half), zmm(4), zmm(half)]);
  }
  start();
  a.mov(rows, inRound(code, "scoreGradients"));
  loadSlot(a, words, TILED_AT.gradientWords);
  a.countdown(left, 2, () => {
    const values = emitLoadWeights(a, weights).map((weight, index) => {
      const x = zmm(8 + index);
      a.v("vaddps", [x, zmm(index % 2), scoreAt(gradients, index >> 1, index % 2)]);
      a.v("vmulps", [x, x, weight]);
      a.v("vmulps", [x, x, AT.scale]);
      return x;
    });
    emitRoundUp(a, values);
    emitStoreRows(a, rows, values);
    emitStoreWords(a, words, values);
    advance();
    a.add(rows, 2 * LINE_BYTES);
    a.add(words, 2 * LINE_BYTES);
  });
}
