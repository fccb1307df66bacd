/** @file YaRN's numbers for the released configurations, and what RoPE must keep. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { rope } from "../kernels/rope/contract.ts";
import { Arena } from "../tensor/arena.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig, RopeScaling } from "./config.ts";
import { makePositions, makeRopeTables, turn } from "./rope.ts";
import { openReferenceDevice, TINY } from "./test-support.ts";
import {
  attentionScale,
  correctionRange,
  ropeFrequencies,
  rotaryMultiplier,
  yarnTemperature,
} from "./yarn.ts";

const V3_SCALING: RopeScaling = {
  type: "yarn",
  factor: 40,
  betaFast: 32,
  betaSlow: 1,
  mscale: 1,
  mscaleAllDim: 1,
  originalMaxPositionEmbeddings: 4096,
};
const V3: Pick<ModelConfig, "qkNopeHeadDim" | "qkRopeHeadDim" | "ropeTheta" | "ropeScaling"> = {
  qkNopeHeadDim: 128,
  qkRopeHeadDim: 64,
  ropeTheta: 10000,
  ropeScaling: V3_SCALING,
};

function near(actual: number, expected: number, digits: number): void {
  const error = Math.abs(actual - expected) / Math.abs(expected);
  assert.ok(error < 10 ** -digits, `${actual} is not ${expected} to ${digits} digits`);
}

test("DeepSeek-V3's frequencies become forty times slower between pairs 10 and 23", () => {
  assert.deepEqual(correctionRange(64, 10000, V3_SCALING), { low: 10, high: 23 });
  const frequencies = ropeFrequencies(V3);
  const known = [
    [9, 0.0749894],
    [10, 0.0562341],
    [11, 0.0390069],
    [16, 0.0055],
    [22, 1.778279e-4],
    [23, 3.333804e-5],
    [31, 3.333804e-6],
  ] as const;
  for (const [pair, frequency] of known) near(frequencies[pair]!, frequency, 6);
  assert.equal(ropeFrequencies({ ...V3, ropeScaling: null })[1], 10000 ** (-2 / 64));
});

test("the attention scale is sharpened by the square of the temperature", () => {
  near(yarnTemperature(40, 1), 1.3688879, 7);
  near(attentionScale(V3), 0.1352338, 6);
  near(attentionScale({ ...V3, ropeScaling: null }), 0.0721688, 6);
  const lite = { ...V3_SCALING, mscale: 707e-3, mscaleAllDim: 707e-3 };
  near(attentionScale({ ...V3, ropeScaling: lite }), 0.1147214, 6);
});

test("cos and sin are multiplied by the ratio of the temperatures", () => {
  assert.equal(rotaryMultiplier(null), 1);
  assert.equal(rotaryMultiplier(V3_SCALING), 1);
  near(rotaryMultiplier({ ...V3_SCALING, mscaleAllDim: 0 }), 1.3688879, 7);
});

test("a correction range without width divides nothing by zero", () => {
  const narrow = { ...V3_SCALING, betaFast: 1e-3, betaSlow: 1e-3 };
  const { low, high } = correctionRange(4, 10000, { ...narrow, originalMaxPositionEmbeddings: 4 });
  assert.ok(high > low);
});

test("turned queries and keys meet at an angle that depends on their distance alone", async () => {
  await using device = await openReferenceDevice();
  const arena = new Arena(device.memory, "test");
  const tables = makeRopeTables(arena, TINY, 16, "f64");
  const columns = TINY.qkRopeHeadDim;
  const turned = (values: readonly number[], position: number): Float64Array => {
    const x = arena.allocate("f64", [1, columns]);
    view(x).set(values);
    const positions = arena.allocate("i32", [1, 1]);
    view(positions)[0] = position;
    rope(device, { x, positions, ...tables, inverse: false });
    return Float64Array.from(view(x));
  };
  const dot = (query: number, key: number): number => {
    const a = turned([0.3, -1, 0.5, 2], query);
    const b = turned([1, 0.2, -0.7, 0.4], key);
    return a.reduce((sum, value, index) => sum + value * b[index]!, 0);
  };
  near(dot(9, 4), dot(6, 1), 12);
  assert.ok(Math.abs(dot(9, 4) - dot(9, 5)) > 1e-3);
});

test("turning forward and backward gives the rows back, per token and per head", async () => {
  await using device = await openReferenceDevice();
  const arena = new Arena(device.memory, "test");
  const tables = makeRopeTables(arena, TINY, 8, "f64");
  const positions = makePositions(arena, tables, { numSequences: 2, seqLength: 3 });
  assert.deepEqual([...view(positions.ofTokens)], [0, 1, 2, 0, 1, 2]);
  for (const rows of [6, 12]) {
    const x = arena.allocate("f64", [rows, TINY.qkRopeHeadDim]);
    const before = view(x).map((_, index) => index + 1);
    view(x).set(before);
    turn(device, positions, x, "forward");
    assert.notDeepEqual([...view(x)], [...before]);
    turn(device, positions, x, "backward");
    view(x).forEach((value, index) => {
      near(value, before[index]!, 12);
    });
  }
});
