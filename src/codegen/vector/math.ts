/**
 * @file Elementary functions as recorded arithmetic, so that every target computes the same
 * polynomial.
 *
 *   exp2     2^t within 2e-7 of itself for −126 ≤ t < 127.5 (an error in t itself comes on top:
 *            where t = x·log₂ e was rounded, 5e-8·|t|); 1 at 0; 0 below −126.5 and ∞ from 127.5
 *            on; NaN for NaN
 *   log(x)   |error| < 1e-7 + 2e-7·|log x|; −∞ for ±0, ∞ for ∞, NaN for x < 0 and NaN;
 *            subnormal x as ±0
 *   sigmoid  1 ÷ (1 + exp(−x)); NaN for NaN
 *   stochasticBf16Bits  bf16 codes, rounded at random
 *
 * Method: reduction by powers of two. The polynomial of 2^f is a least-squares fit under Lawson's
 * weights, that of log is the one of Cephes' single-precision logf (S. L. Moshier): coefficients
 * are facts of approximation theory.
 */

import type { Value } from "./program.ts";
import type { Recorder } from "./recorder.ts";

/** exp(x) = exp2(x · LOG2_E). */
export const LOG2_E: number = Math.LOG2E;
/** ln 2 in two parts: the first has few bits, so that its product with an integer is exact. */
const LN2_HIGH = 0.693145751953125;
const LN2_LOW = 1.4286068203094173e-6;
/**
 * 1.5·2²³ and the exponent's bias: adding it rounds a float t to an integer n, and the low bits of
 * the sum are those of 2^n before they are shifted into place.
 */
const ROUNDING_SHIFT = 12582912 + 127;
/**
 * 2^f for |f| ≤ ½ within 9.4e-8 of itself, highest power first; exactly 1 at 0, so that the largest
 * term of a softmax is 1.
 */
const FRACTION_POLYNOMIAL: readonly [number, number, number, number, number, number] = [
  0.0013269406044855714, 0.009671294130384922, 0.0555071122944355, 0.24022246897220612,
  0.6931470036506653, 1,
];
/** The exponents whose powers become 0 and ∞ by their bits alone. */
const EXP2_LEAST = -127;
const EXP2_MOST = 128;
const FRACTION_BITS = 23;
/** What `exp2OfNonPositive` is made of, for code that is written by hand. */
export const EXP2: {
  readonly least: number;
  readonly shift: number;
  /** Highest power first. */
  readonly polynomial: typeof FRACTION_POLYNOMIAL;
  readonly fractionBits: number;
} = {
  least: EXP2_LEAST,
  shift: ROUNDING_SHIFT,
  polynomial: FRACTION_POLYNOMIAL,
  fractionBits: FRACTION_BITS,
};
const BF16_QUIET_BIT = 0x40;

export function exp2(v: Recorder, t: Value): Value {
  // The value comes second in min and max, so that NaN passes.
  return exp2OfNonPositive(v, v.min(v.float(EXP2_MOST), t));
}

/**
 * 2^t where t is at most 0, such as a score less its row's maximum. `fraction` is the polynomial of
 * 2^f: a shorter one where less than f32's precision is needed.
 */
export function exp2OfNonPositive(
  v: Recorder,
  t: Value,
  fraction: readonly number[] = FRACTION_POLYNOMIAL,
): Value {
  const clamped = v.max(v.float(EXP2_LEAST), t);
  const shifted = v.add(clamped, v.float(ROUNDING_SHIFT));
  const f = v.sub(clamped, v.sub(shifted, v.float(ROUNDING_SHIFT)));
  let power = v.float(fraction[0]!);
  for (const coefficient of fraction.slice(1)) power = v.fma(power, f, v.float(coefficient));
  // 2^n, n in [−127, 128]: the ends are the bits of 0 and ∞.
  return v.mul(power, v.shiftLeft(shifted, FRACTION_BITS));
}

/** e^(−x), as exp2. */
export function expOfNegated(v: Recorder, x: Value): Value {
  return exp2(v, v.mul(x, v.float(-LOG2_E)));
}

export function sigmoid(v: Recorder, x: Value): Value {
  const one = v.float(1);
  return v.div(one, v.add(one, expOfNegated(v, x)));
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
