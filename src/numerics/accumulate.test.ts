/**
 * @file Tests of the tensor-core accumulation model: worked examples, growth with K, flatness with
 * promotion.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { dotHopperFp8 } from "./accumulate.ts";
import { encodeE4m3, fromE4m3, toE4m3 } from "./fp8.ts";

const NO_PROMOTION = { promotionInterval: Infinity };
const PROMOTION = { promotionInterval: 128 };

function codesOf(values: readonly number[]): Uint8Array {
  const codes = new Uint8Array(values.length);
  encodeE4m3(new Float32Array(values), codes);
  return codes;
}

function exactDot(a: Uint8Array, b: Uint8Array): number {
  let sum = 0;
  for (let k = 0; k < a.length; k++) sum += fromE4m3(a[k]!) * fromE4m3(b[k]!);
  return sum;
}

test("a sum that fits 14 bits is exact", () => {
  const a = codesOf([1.5, -2, 0.5, 448]);
  const b = codesOf([1.5, 3, 0.25, 0]);
  assert.equal(dotHopperFp8(a, b, NO_PROMOTION), 1.5 * 1.5 - 6 + 0.125);
  assert.equal(dotHopperFp8(new Uint8Array(0), new Uint8Array(0), PROMOTION), 0);
});

test("terms are cut at 13 bits below the largest exponent, which is not normalised", () => {
  // 1.875² = 3.515625 has exponent 0 although it is above 2: terms are cut to multiples of 2^-13.
  const small = codesOf([1.875, 2 ** -6]);
  assert.equal(dotHopperFp8(small, codesOf([1.875, 2 ** -7]), NO_PROMOTION), 3.515625);
  // But the normalised sum has exponent 1: it is cut to a multiple of 2^-12.
  assert.equal(dotHopperFp8(small, codesOf([1.875, 2 ** -6]), NO_PROMOTION), 3.515625 + 2 ** -12);
  // Beside 1 · 1, 1.5 · 2^-13 loses its half; cutting is toward zero for both signs.
  assert.equal(
    dotHopperFp8(codesOf([1, 2 ** -6]), codesOf([1, 1.5 * 2 ** -7]), NO_PROMOTION),
    1 + 2 ** -13,
  );
  assert.equal(
    dotHopperFp8(codesOf([-1, -(2 ** -6)]), codesOf([1, 1.5 * 2 ** -7]), NO_PROMOTION),
    -1 - 2 ** -13,
  );
});

test("small products vanish beside a large accumulator, unless it was promoted", () => {
  // The first 128 products give 128 · 256 = 2^15; beside it terms are cut to multiples of 4.
  const a = new Uint8Array(256).fill(toE4m3(16));
  const b = new Uint8Array(256).fill(toE4m3(16));
  a.fill(toE4m3(1), 128);
  b.fill(toE4m3(0.5), 128);
  assert.equal(dotHopperFp8(a, b, NO_PROMOTION), 2 ** 15);
  assert.equal(dotHopperFp8(a, b, PROMOTION), 2 ** 15 + 64);
});

test("subnormal operands keep exponent -6 and are exact on their own", () => {
  const a = codesOf([2 ** -9, 3 * 2 ** -9, 2 ** -9]);
  const b = codesOf([1, 1, 2 ** -9]);
  // The largest exponent is -6, so terms are cut to multiples of 2^-19.
  assert.equal(dotHopperFp8(a, b, NO_PROMOTION), 4 * 2 ** -9 + 2 ** -18);
});

test("a NaN code anywhere makes the sum NaN", () => {
  const a = codesOf([1, 2, 3]);
  assert.ok(Number.isNaN(dotHopperFp8(a, new Uint8Array([0x38, 0xff, 0x38]), NO_PROMOTION)));
});

/** Errors of `numSamples` random sums of length K against exact sums. */
function errorsAt(
  K: number,
  sample: (random: Random) => number,
  options: { promotionInterval: number; numSamples: number },
): { frobenius: number; maxRelative: number } {
  const random = new Random(K);
  let gap = 0;
  let squares = 0;
  let maxRelative = 0;
  for (let i = 0; i < options.numSamples; i++) {
    const a = new Uint8Array(K).map(() => toE4m3(sample(random)));
    const b = new Uint8Array(K).map(() => toE4m3(sample(random)));
    const exact = exactDot(a, b);
    const distance = Math.abs(dotHopperFp8(a, b, options) - exact);
    gap += distance ** 2;
    squares += exact ** 2;
    maxRelative = Math.max(maxRelative, distance / Math.abs(exact));
  }
  return { frobenius: Math.sqrt(gap / squares), maxRelative };
}

test("the error of long sums grows with K and stays flat with promotion every 128", () => {
  const lengths = [512, 1024, 2048, 4096];
  const normal = (random: Random): number => random.normal();
  const positive = (random: Random): number => random.uniform();

  const gaussian = lengths.map((K) => errorsAt(K, normal, { ...NO_PROMOTION, numSamples: 200 }));
  const uniform = lengths.map((K) => errorsAt(K, positive, { ...NO_PROMOTION, numSamples: 20 }));
  for (let i = 1; i < lengths.length; i++) {
    assert.ok(gaussian[i]!.frobenius > 1.2 * gaussian[i - 1]!.frobenius, JSON.stringify(gaussian));
    assert.ok(uniform[i]!.maxRelative > 1.8 * uniform[i - 1]!.maxRelative, JSON.stringify(uniform));
  }
  // The published study at K = 4096 (same model, other samples): 1.25e-3 and 7.5e-2.
  const last = { gaussian: gaussian.at(-1)!.frobenius, uniform: uniform.at(-1)!.maxRelative };
  assert.ok(last.gaussian > 0.9e-3 && last.gaussian < 1.6e-3, `${last.gaussian}`);
  assert.ok(last.uniform > 6e-2 && last.uniform < 9e-2, `${last.uniform}`);

  for (const K of lengths) {
    const { frobenius } = errorsAt(K, normal, { ...PROMOTION, numSamples: 200 });
    assert.ok(frobenius > 1.1e-4 && frobenius < 1.7e-4, `K ${K}: ${frobenius}`);
    const { maxRelative } = errorsAt(K, positive, { ...PROMOTION, numSamples: 20 });
    assert.ok(maxRelative < 1.5e-3, `K ${K}: ${maxRelative}`);
  }
});
