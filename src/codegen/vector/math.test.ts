/**
 * @file exp2, log and sigmoid through generated WebAssembly: accuracy over their range, and their
 * special values.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { hasRelaxedSimd } from "../wasm/features.ts";
import { instantiate } from "../wasm/module.ts";
import { lowerToWasm } from "./lower-wasm.ts";
import { exp2, exp2OfNonPositive, expOfNegated, LOG2_E, log, sigmoid } from "./math.ts";
import type { Value } from "./program.ts";
import { type Recorder, rowProgram } from "./recorder.ts";

const memory = new WebAssembly.Memory({ initial: 32, maximum: 65536, shared: true });
const INPUT = 4096;
const OUTPUT = 2 ** 20;

/** f of every input, computed as one row; `relaxedSimd` chooses fused products where they exist. */
function evaluate(
  f: (v: Recorder, x: Value) => Value,
  inputs: Float32Array,
  relaxedSimd: boolean,
): Float32Array {
  const program = rowProgram({
    name: f.name,
    operands: { x: { kind: "row", dtype: "f32" }, out: { kind: "row", dtype: "f32" } },
    scalars: [],
    body(v, { x, out }) {
      v.columns(() => v.store(out, f(v, v.load(x))));
    },
  });
  const { run } = instantiate<"run">(lowerToWasm(program, { relaxedSimd }), memory);
  new Float64Array(memory.buffer, 0, 7).set([1, inputs.length, 1, INPUT, 0, OUTPUT, 0]);
  new Float32Array(memory.buffer, INPUT, inputs.length).set(inputs);
  run(0, 0, 1);
  return new Float32Array(memory.buffer, OUTPUT, inputs.length).slice();
}

/** Evenly spaced, and as many close to `least` and `most`. */
function spread(least: number, most: number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => least + ((most - least) * i) / (count - 1));
}

const power = (t: number): number => 2 ** t;

const MODES = [false, ...(hasRelaxedSimd() ? [true] : [])];

function worstRelativeError(
  inputs: Float32Array,
  actual: Float32Array,
  f: (x: number) => number,
): number {
  let worst = 0;
  for (const [i, x] of inputs.entries()) {
    worst = Math.max(worst, Math.abs(actual[i]! / f(x) - 1));
  }
  return worst;
}

test("exp2 errs by less than 2e-7 of its value wherever its result is normal", () => {
  for (const relaxedSimd of MODES) {
    for (const [least, most] of [
      [-126, 127.49],
      [-1, 1],
      [-0.6, 0.6],
    ] as const) {
      const inputs = spread(least, most, 200_003);
      const error = worstRelativeError(inputs, evaluate(exp2, inputs, relaxedSimd), power);
      assert.ok(error < 2e-7, `relaxed ${relaxedSimd}, [${least}, ${most}]: ${error}`);
    }
    const inputs = spread(-126, 0, 100_003);
    const actual = evaluate((v, x) => exp2OfNonPositive(v, x), inputs, relaxedSimd);
    assert.ok(worstRelativeError(inputs, actual, power) < 2e-7);
  }
});

test("exp2 has its limits: 0 far below, infinity far above, NaN for NaN, exactly 1 at 0", () => {
  const ends = [-Infinity, -1e30, -126.6, 0, -0, 127.6, 1e9, Infinity];
  const words = Float32Array.from([...ends, 0, 0, 0]);
  // NaNs: with a payload that would reach the exponent if shifted, signalling, negative.
  new Uint32Array(words.buffer).set([0x7fc00001, 0x7f8000ff, 0xffffffff], 8);
  for (const relaxedSimd of MODES) {
    const actual = evaluate(exp2, words, relaxedSimd);
    const expected = [0, 0, 0, 1, 1, Infinity, Infinity, Infinity, NaN, NaN, NaN];
    assert.deepEqual([...actual], expected);
    const below = evaluate((v, x) => exp2OfNonPositive(v, x), words.subarray(8), relaxedSimd);
    assert.deepEqual([...below], [NaN, NaN, NaN]);
  }
});

test("e^-x errs by what rounding its exponent costs", () => {
  const inputs = spread(-88, 87, 100_003);
  for (const relaxedSimd of MODES) {
    for (const [i, actual] of evaluate(expOfNegated, inputs, relaxedSimd).entries()) {
      const x = inputs[i]!;
      const error = Math.abs(actual / Math.exp(-x) - 1);
      assert.ok(error < 2e-7 + 5e-8 * Math.abs(x * LOG2_E), `e^-${x} is off by ${error}`);
    }
  }
});

test("log errs by less than 1e-7 + 2e-7 of its value for every normal number", () => {
  for (const relaxedSimd of MODES) {
    const inputs = Float32Array.from(
      { length: 100_001 },
      (_, i) => 2 ** (-126 + (253.99 * i) / 1e5),
    );
    const near = spread(0.5, 2, 50_001);
    for (const [i, actual] of evaluate(log, inputs, relaxedSimd).entries()) {
      const expected = Math.log(inputs[i]!);
      const error = Math.abs(actual - expected);
      assert.ok(error < 1e-7 + 2e-7 * Math.abs(expected), `log ${inputs[i]} is off by ${error}`);
    }
    for (const [i, actual] of evaluate(log, near, relaxedSimd).entries()) {
      const error = Math.abs(actual - Math.log(near[i]!));
      assert.ok(error < 2e-7, `log ${near[i]} is off by ${error}`);
    }
  }
});

test("log has its limits: −infinity at 0, infinity at infinity, NaN below 0 and for NaN", () => {
  const inputs = Float32Array.from([0, -0, 1e-40, 1, Infinity, -1, -Infinity, NaN]);
  for (const relaxedSimd of MODES) {
    const actual = evaluate(log, inputs, relaxedSimd);
    const expected = [-Infinity, -Infinity, -Infinity, 0, Infinity, NaN, NaN, NaN];
    assert.deepEqual([...actual], expected);
  }
});

test("sigmoid goes from 0 to 1 and lets NaN through", () => {
  const inputs = Float32Array.from([-Infinity, -200, 0, 200, Infinity, NaN, 1.5]);
  for (const relaxedSimd of MODES) {
    const actual = evaluate(sigmoid, inputs, relaxedSimd);
    assert.deepEqual([...actual.subarray(0, 6)], [0, 0, 0.5, 1, 1, NaN]);
    assert.ok(Math.abs(actual[6]! - 1 / (1 + Math.exp(-1.5))) < 2e-7);
  }
});
