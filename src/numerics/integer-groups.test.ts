/** @file Groups of integers hold what their scale allows, and no code is wasted. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../base/random.ts";
import { roundToBf16 } from "./bf16.ts";
import {
  codeRange,
  dequantizeRow,
  GROUP_SIZES,
  INTEGER_BITS,
  makeCodedRow,
  quantizeRow,
} from "./integer-groups.ts";

describe("integer groups", () => {
  for (const bits of INTEGER_BITS) {
    for (const asymmetric of [false, true]) {
      const which = `${bits} bits, ${asymmetric ? "asymmetric" : "symmetric"}`;
      it(`err by half a step, or by one where a zero point is rounded too: ${which}`, () => {
        const seed = Date.now() % 2 ** 31;
        const random = new Random(seed, which);
        for (const groupSize of GROUP_SIZES) {
          const rule = { bits, groupSize, asymmetric };
          // Off centre, so that asymmetric groups have something to gain; a ragged last group.
          const values = Float32Array.from({ length: 300 }, () => random.normal() + 0.7);
          const row = makeCodedRow(values.length, groupSize);
          quantizeRow(values, rule, row);
          const opened = new Float32Array(values.length);
          dequantizeRow(row, groupSize, opened);
          const [least, largest] = codeRange(bits);
          for (const [at, value] of values.entries()) {
            const group = Math.floor(at / groupSize);
            const step = Math.abs(row.scales[group]!);
            assert.equal(step, roundToBf16(step), "scales are bf16");
            assert.ok(row.codes[at]! >= least && row.codes[at]! <= largest);
            const error = Math.abs(opened[at]! - value);
            const most = asymmetric ? 1 : bits === 8 ? 0.5 : 1;
            assert.ok(error <= 1.001 * most * step, `${value} became ${opened[at]}, seed ${seed}`);
          }
        }
      });
    }
  }

  it("use the lowest code of int4 for the extreme, of either sign", () => {
    for (const sign of [1, -1]) {
      const values = Float32Array.from({ length: 32 }, (_, at) => (sign * at) / 31);
      const row = makeCodedRow(32, 32);
      quantizeRow(values, { bits: 4, groupSize: 32, asymmetric: false }, row);
      assert.equal(row.codes[31], -8);
      assert.equal(Math.sign(row.scales[0]!), -sign);
    }
  });

  it("keep zero exactly, in asymmetric groups and in groups of zeros alone", () => {
    const values = Float32Array.from({ length: 64 }, (_, at) => (at < 32 ? at / 10 : 0));
    for (const bits of INTEGER_BITS) {
      for (const asymmetric of [false, true]) {
        const row = makeCodedRow(64, 32);
        quantizeRow(values, { bits, groupSize: 32, asymmetric }, row);
        const opened = new Float32Array(64);
        dequantizeRow(row, 32, opened);
        assert.deepEqual(opened.subarray(32).filter((value) => value !== 0).length, 0);
        assert.equal(Math.abs(opened[0]!), 0);
      }
    }
  });

  it("refuse what is not finite", () => {
    for (const stray of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      for (const asymmetric of [false, true]) {
        const values = Float32Array.of(1, stray, 2);
        const rule = { bits: 8, groupSize: 32, asymmetric } as const;
        assert.throws(() => quantizeRow(values, rule, makeCodedRow(3, 32)), {
          code: "numerics.notFinite",
        });
      }
    }
  });
});
