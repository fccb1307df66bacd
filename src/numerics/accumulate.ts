/**
 * @file A bit model of how Hopper's tensor cores add FP8 (E4M3) products, with and without
 * promotion.
 *
 * One step adds 33 terms at once: 32 products and the accumulator.
 *
 *   1. A product multiplies two significands in [1, 2), so its own is in [1, 4), not normalised;
 *      exponents add. A subnormal has exponent -6 and a significand below 1. Zeros take no part.
 *   2. Every term is cut toward zero to a multiple of 2^(e − 13), e the largest exponent of a term.
 *   3. The sum of what is left is exact; it is normalised and cut toward zero to 13 fraction bits.
 *
 * What step 2 loses grows with the accumulator, so the error of a long sum grows with its length K.
 * DeepSeek-V3 therefore moves the partial sum to FP32 registers every 128 of K ("promotion") and
 * starts again from zero. Sums whose length is no multiple of 32 end with a shorter step: zeros
 * change nothing. It is a model to reason and test with, not yet compared with a device.
 *
 * Source: the structure found by the MMA-Sim study of tensor cores; DeepSeek-V3 report §3.3.2 for
 * promotion.
 */
import { assert } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import { E4M3 } from "./fp8.ts";

/** Products added in one step: the K of one FP8 tensor-core instruction. */
export const ACCUMULATION_STEP = 32;

const FRACTION_BITS = 13;

/**
 * Signed significands of E4M3 codes, times 8 (0..15), and exponents; a zero's exponent loses to
 * every other.
 */
const SIGNIFICANDS = new Int32Array(256);
const EXPONENTS = new Int32Array(256);
const ZERO_EXPONENT = -1000;
const PRODUCT_FRACTION_BITS = 2 * E4M3.fractionBits;

for (let code = 0; code < 256; code++) {
  const exponent = (code & 0x7f) >> 3;
  const significand = (code & 7) + (exponent === 0 ? 0 : 8);
  SIGNIFICANDS[code] = code < 0x80 ? significand : -significand;
  EXPONENTS[code] = significand === 0 ? ZERO_EXPONENT : Math.max(exponent, 1) - E4M3.bias;
}

/** `significand × 2^shift`, cut toward zero. */
function shiftTowardZero(significand: number, shift: number): number {
  if (shift >= 0) return significand << shift;
  if (shift < -30) return 0;
  return significand < 0 ? -(-significand >> -shift) : significand >> -shift;
}

/** Positions [start, end) of two rows of codes, to be added onto an empty accumulator. */
export interface CodeRange {
  readonly start: number;
  readonly end: number;
}

/**
 * One accumulator's sum over a range; its value is a multiple of a power of two with 14 significant
 * bits. The codes are not NaN.
 */
export function sumHopperFp8(a: Uint8Array, b: Uint8Array, range: CodeRange): number {
  // The accumulator is significand × 2^(exponent − 13), its significand zero or 14 bits long.
  let significand = 0;
  let exponent = ZERO_EXPONENT;
  for (let start = range.start; start < range.end; start += ACCUMULATION_STEP) {
    const end = Math.min(start + ACCUMULATION_STEP, range.end);
    let exponentMax = exponent;
    for (let k = start; k < end; k++) {
      const sum = EXPONENTS[a[k]!]! + EXPONENTS[b[k]!]!;
      if (sum > exponentMax) exponentMax = sum;
    }
    // Without a term that is not zero, the exponents here are sums with ZERO_EXPONENT.
    if (exponentMax <= ZERO_EXPONENT / 2) continue;
    let total = shiftTowardZero(significand, exponent - exponentMax);
    for (let k = start; k < end; k++) {
      const shift = EXPONENTS[a[k]!]! + EXPONENTS[b[k]!]! - exponentMax;
      total += shiftTowardZero(
        SIGNIFICANDS[a[k]!]! * SIGNIFICANDS[b[k]!]!,
        shift + FRACTION_BITS - PRODUCT_FRACTION_BITS,
      );
    }
    const excess = 31 - FRACTION_BITS - Math.clz32(Math.abs(total));
    significand = shiftTowardZero(total, -excess);
    exponent = total === 0 ? ZERO_EXPONENT : exponentMax + excess;
  }
  return significand === 0 ? 0 : significand * 2 ** (exponent - FRACTION_BITS);
}

/**
 * Σ a·b over two rows of E4M3 codes as the tensor core would give it, in float32. Every
 * `promotionInterval` elements the partial sum is added to a float32 register; Infinity keeps it in
 * the tensor core to the end.
 */
export function dotHopperFp8(
  a: Uint8Array,
  b: Uint8Array,
  options: { promotionInterval: number },
): number {
  const { promotionInterval } = options;
  assert(a.length === b.length, `dotHopperFp8: rows of ${a.length} and ${b.length} codes`);
  assert(
    promotionInterval === Infinity ||
      (isIntegerIn(promotionInterval, ACCUMULATION_STEP, 2 ** 30) &&
        promotionInterval % ACCUMULATION_STEP === 0),
    `promotionInterval (${promotionInterval}) must be Infinity or a multiple of 32`,
  );
  for (let k = 0; k < a.length; k++) {
    if ((a[k]! & 0x7f) === 0x7f || (b[k]! & 0x7f) === 0x7f) return NaN;
  }
  let promoted = 0;
  for (let start = 0; start < a.length; start += promotionInterval) {
    const end = Math.min(start + promotionInterval, a.length);
    promoted = Math.fround(promoted + sumHopperFp8(a, b, { start, end }));
  }
  return promoted;
}
