/**
 * @file Elementary functions as recorded arithmetic, so that every target computes the same
 * polynomial.
 *
 *   exp(x)   relative error < 2e-7 for −86.98 < x < 88.72; 0 below (also where the result would be
 *            subnormal or in the smallest binade), ∞ above, NaN for NaN
 *   log(x)   |error| < 1e-7 + 2e-7·|log x|; −∞ for ±0, ∞ for ∞, NaN for x < 0 and NaN;
 *            subnormal x as ±0
 *   sigmoid  1 ÷ (1 + exp(−x)); NaN for NaN
 *   stochasticBf16Bits  bf16 codes, rounded at random
 *
 * Method: reduction by powers of two and the polynomials of Cephes' single-precision expf and logf
 * (S. L. Moshier), whose coefficients are facts of approximation theory.
 */

import type { Value } from "./program.ts";
import type { Recorder } from "./recorder.ts";

const LOG2_E = Math.LOG2E;
/** ln 2 in two parts: the first has few bits, so that its product with an integer is exact. */
const LN2_HIGH = 0.693145751953125;
const LN2_LOW = 1.4286068203094173e-6;
/** 1.5·2²³: adding it rounds a float to an integer, which then stands in the low bits. */
const ROUNDING_SHIFT = 12582912;
/** e^r = 1 + r + r²·(p0 + p1·r + … + p5·r⁵) for |r| ≤ ½ ln 2. */
const EXP_POLYNOMIAL = {
  p5: 1.98756915e-4,
  p4: 1.3981999507e-3,
  p3: 8.3334519073e-3,
  p2: 4.1665795894e-2,
  p1: 1.6666665459e-1,
  p0: 5.0000001201e-1,
} as const;
/** exp is 0 below the first and ∞ above the second. */
const EXP_LEAST = -87.5;
const EXP_MOST = 89;
const FRACTION_BITS = 23;
const BF16_QUIET_BIT = 0x40;

export function exp(v: Recorder, x: Value): Value {
  // The value comes second in min and max, so that NaN passes.
  return expBelow(v, v.min(v.float(EXP_MOST), x));
}

/** exp(x) where x is at most 0, such as a score less its row's maximum. */
export function expOfNonPositive(v: Recorder, x: Value): Value {
  return expBelow(v, x);
}

function expBelow(v: Recorder, x: Value): Value {
  const clamped = v.max(v.float(EXP_LEAST), x);
  const shifted = v.fma(clamped, v.float(LOG2_E), v.float(ROUNDING_SHIFT));
  const n = v.sub(shifted, v.float(ROUNDING_SHIFT));
  const coarse = v.fma(n, v.float(-LN2_HIGH), clamped);
  const r = v.fma(n, v.float(-LN2_LOW), coarse);
  // 2·e^r = (2 + 2r) + r²·P(r), by Estrin's scheme: short chains keep the processor busy.
  const square = v.mul(r, r);
  const linear = (high: number, low: number): Value => v.fma(r, v.float(high), v.float(low));
  const { p5, p4, p3, p2, p1, p0 } = EXP_POLYNOMIAL;
  const upper = v.fma(linear(2 * p5, 2 * p4), square, linear(2 * p3, 2 * p2));
  const polynomial = v.fma(upper, square, linear(2 * p1, 2 * p0));
  const doubled = v.fma(polynomial, square, linear(2, 2));
  // 2^(n−1), n in [−126, 128]: with the doubled fraction, 2^n neither overflows nor vanishes early.
  const power = v.integerAdd(v.shiftLeft(shifted, FRACTION_BITS), v.float(0.5));
  return v.mul(doubled, power);
}

export function sigmoid(v: Recorder, x: Value): Value {
  const one = v.float(1);
  return v.div(one, v.add(one, exp(v, v.neg(x))));
}

/**
 * bf16 codes of f32 values, rounded up with the probability of what is cut off; `random` has 16
 * random bits in each lane. Infinities stay, NaN becomes quiet.
 */
export function stochasticBf16Bits(v: Recorder, a: Value, random: Value): Value {
  const quiet = v.or(v.shiftRight(a, 16), v.integer(BF16_QUIET_BIT));
  return v.select(v.equal(a, a), v.shiftRight(v.integerAdd(a, random), 16), quiet);
}

const LOG_POLYNOMIAL = [
  7.0376836292e-2, -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1,
  -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
];
const EXPONENT_MASK = 0x7f800000;
const SMALLEST_NORMAL = 2 ** -126;

export function log(v: Recorder, x: Value): Value {
  // x = m·2^e with m in [√½, √2): shift the exponent's origin to √½ before cutting it off.
  const origin = v.float(Math.SQRT1_2);
  const offset = v.integerSub(x, origin);
  const exponent = v.toFloat(v.shiftRightSigned(offset, FRACTION_BITS));
  const mantissaBits = v.integerAdd(v.and(offset, v.integer(~(-1 << FRACTION_BITS))), origin);
  const f = v.sub(mantissaBits, v.float(1));
  let polynomial = v.float(LOG_POLYNOMIAL[0]!);
  for (const coefficient of LOG_POLYNOMIAL.slice(1)) {
    polynomial = v.fma(polynomial, f, v.float(coefficient));
  }
  const square = v.mul(f, f);
  const cubic = v.mul(v.mul(polynomial, f), square);
  const low = v.fma(exponent, v.float(LN2_LOW), v.fma(square, v.float(-0.5), cubic));
  const finite = v.fma(exponent, v.float(LN2_HIGH), v.add(f, low));
  const infinity = v.integer(EXPONENT_MASK);
  const largeOrNaN = v.select(v.less(x, infinity), finite, v.add(x, infinity));
  // ±0 and subnormals give −∞; below that NaN, made as ∞ − ∞ (a negative x times ∞, plus ∞).
  const negative = v.add(v.mul(x, infinity), infinity);
  const small = v.select(
    v.less(v.abs(x), v.float(SMALLEST_NORMAL)),
    v.neg(infinity),
    v.select(v.less(x, v.float(0)), negative, largeOrNaN),
  );
  return small;
}
