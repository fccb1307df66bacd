/**
 * @file Elementary functions as recorded arithmetic, so that every target computes the same polynomial.
 *
 *   exp(x)   relative error < 2e-7 where the result is at least 2^-125; 0 for x < −86.98 (and −∞); ∞ from 88.73 on;
 *            NaN for NaN. Results that would be subnormal, and the two binades above, are flushed to 0.
 *   log(x)   |error| < 1e-7 + 2e-7·|log x|; −∞ for ±0, ∞ for ∞, NaN for x < 0 and NaN; subnormal x as ±0.
 *   sigmoid  1 ÷ (1 + exp(−x)); NaN for NaN.
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
const EXP_POLYNOMIAL = [
  1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
  5.0000001201e-1,
];
/** exp is 0 below the first and ∞ above the second. */
const EXP_LEAST = -87.5;
const EXP_MOST = 89;
const FRACTION_BITS = 23;

export function exp(v: Recorder, x: Value): Value {
  // The value comes second in min and max, so that NaN passes.
  const clamped = v.min(v.float(EXP_MOST), v.max(v.float(EXP_LEAST), x));
  const shifted = v.fma(clamped, v.float(LOG2_E), v.float(ROUNDING_SHIFT));
  const n = v.sub(shifted, v.float(ROUNDING_SHIFT));
  const coarse = v.fma(n, v.float(-LN2_HIGH), clamped);
  const rest = v.fma(n, v.float(-LN2_LOW), coarse);
  let polynomial = v.float(EXP_POLYNOMIAL[0]!);
  for (const coefficient of EXP_POLYNOMIAL.slice(1)) {
    polynomial = v.fma(polynomial, rest, v.float(coefficient));
  }
  const one = v.float(1);
  const fraction = v.add(v.fma(v.mul(polynomial, rest), rest, rest), one);
  // 2^(n−1), n in [−126, 128]; the doubled fraction then reaches 2^n without overflowing early.
  const halfBias = v.float(0.5);
  const power = v.integerAdd(v.shiftLeft(shifted, FRACTION_BITS), halfBias);
  return v.mul(v.add(fraction, fraction), power);
}

export function sigmoid(v: Recorder, x: Value): Value {
  const one = v.float(1);
  return v.div(one, v.add(one, exp(v, v.neg(x))));
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
