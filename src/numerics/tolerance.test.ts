/**
 * @file Tests of the tolerance table: right computations fall within it, and the usual mistakes
 * outside.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { roundToBf16 } from "./bf16.ts";
import {
  difference,
  maxRelativeError,
  mismatch,
  scaledError,
  type Tolerance,
  toleranceFor,
} from "./tolerance.ts";

test("difference is 0 for equal, ε²/2 for close, 1 for orthogonal, 2 for opposite data", () => {
  assert.equal(difference([1, 2, 3], [1, 2, 3]), 0);
  assert.equal(difference([1, 0], [0, 1]), 1);
  assert.equal(difference([1, 2], [-1, -2]), 2);
  assert.equal(difference([0, 0], [0, 0]), 0);
  assert.ok(Math.abs(difference([1.001, 2.002], [1, 2]) / 0.5e-6 - 1) < 0.01);
  assert.ok(Number.isNaN(difference([NaN], [1])));
});

test("errors of the worst element are against the largest or against its own magnitude", () => {
  assert.equal(scaledError([1, 10.5], [1.25, 10]), 0.05);
  assert.equal(maxRelativeError([1, 10.5], [1.25, 10]), 0.2);
  assert.equal(maxRelativeError([1, 10.5], [1.25, 10], 2), 0.05);
  assert.equal(scaledError([1], [0]), Infinity);
  assert.equal(scaledError([], []), 0);
});

/** M×N results of a product over K in float32 or float64, with operands rounded as asked. */
function products(
  K: number,
  round: (value: number) => number,
  sum: (value: number) => number,
): Float32Array {
  const random = new Random(K);
  const out = new Float32Array(64);
  for (let i = 0; i < out.length; i++) {
    let total = 0;
    for (let k = 0; k < K; k++)
      total = sum(total + round(random.normal()) * round(random.normal()));
    out[i] = total;
  }
  return out;
}

test("a float32 sum of any length is within the matmul tolerance, a wrong element is not", () => {
  const exact = (value: number): number => value;
  for (const K of [1, 2, 17, 256, 4096]) {
    for (const dtype of ["f32", "bf16"] as const) {
      const round = dtype === "bf16" ? roundToBf16 : Math.fround;
      const expected = products(K, round, exact);
      const allowed = toleranceFor("matmul", dtype, K);
      assert.equal(
        mismatch(products(K, round, Math.fround), expected, allowed),
        undefined,
        `K ${K}`,
      );
      const broken = expected.slice();
      broken[7] = broken[7]! + 0.01;
      assert.match(mismatch(broken, expected, allowed) ?? "", /^\[7\] is /, `K ${K}`);
    }
  }
});

test("rounding results to bfloat16 is within the bf16 tolerance and outside the f32 one", () => {
  const random = new Random(1);
  const expected = new Float32Array(1000).map(() => random.normal());
  const rounded = expected.map(roundToBf16);
  for (const kind of ["elementwise", "row", "attention"] as const) {
    assert.equal(mismatch(rounded, expected, toleranceFor(kind, "bf16", 1000)), undefined);
    assert.notEqual(mismatch(rounded, expected, toleranceFor(kind, "f32", 1000)), undefined);
  }
  assert.notEqual(mismatch(rounded, expected, toleranceFor("storage", "f32")), undefined);
});

test("NaN must meet NaN, infinity the same infinity, and zero may be of either sign", () => {
  const loose: Tolerance = { difference: 1, scaledError: 1 };
  const expected = new Float32Array([NaN, Infinity, -Infinity, 0, 1]);
  assert.equal(mismatch(expected.slice(), expected, loose), undefined);
  assert.equal(
    mismatch(new Float32Array([-0]), new Float32Array([0]), toleranceFor("storage", "f32")),
    undefined,
  );
  for (const [index, value] of [
    [0, 1],
    [1, 3e38],
    [2, Infinity],
    [4, NaN],
  ] as const) {
    const actual = expected.slice();
    actual[index] = value;
    assert.ok(mismatch(actual, expected, loose)?.startsWith(`[${index}] is ${actual[index]}`));
  }
  assert.throws(
    () => mismatch(new Float32Array(1), new Float32Array(2), loose),
    /1 and 2 elements/,
  );
});

test("a report names the first worst element, both values and both bit patterns", () => {
  const report = mismatch(
    new Float32Array([1, 2.5]),
    new Float32Array([1, 2]),
    toleranceFor("row", "f32"),
  );
  assert.match(
    report ?? "",
    /^\[1\] is 2\.5 \(0x40200000\), expected 2 \(0x40000000\); scaled error 2\.50e-1/,
  );
});
