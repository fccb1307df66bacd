/** @file The mixture of experts against a plain loop over tokens, and what its routing promises. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { expertLoadOf } from "./gate.ts";
import { MoeLayer, type MoeSaved } from "./moe.ts";
import type { ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import {
  fillNormal,
  makePass,
  openReferenceDevice,
  randomParameters,
  TINY,
} from "./test-support.ts";

const SEED = 21;
const NUM_TOKENS = 12;
const BATCH = { numSequences: 3, seqLength: 4, balanceScale: 0 };
const PREFIX = "layers.1.moe";

interface Bench {
  readonly config: ModelConfig;
  readonly pass: Pass;
  readonly parameters: ParameterSet;
  readonly layer: MoeLayer;
  readonly bias: Float64Array;
  readonly x: Tensor<FloatType>;
  run(): { readonly out: Float64Array; readonly saved: MoeSaved };
}

function makeBench(device: Device, overrides: Partial<ModelConfig>): Bench {
  const config = { ...TINY, ...overrides };
  const pass = makePass(device, config, BATCH);
  const parameters = randomParameters(device, config, SEED);
  const random = new Random(SEED, "moe");
  const bias = pass.saved.allocate("f64", [1, config.numRoutedExperts]);
  fillNormal(bias, random, 0.2);
  const x = pass.saved.allocate("f64", [NUM_TOKENS, config.hiddenDim]);
  fillNormal(x, random);
  const layer = new MoeLayer(config, parameters, { prefix: PREFIX, bias });
  const run = (): { out: Float64Array; saved: MoeSaved } => {
    const out = pass.saved.allocateZeros("f64", [NUM_TOKENS, config.hiddenDim]);
    const saved = layer.forward(pass, x, out);
    return { out: Float64Array.from(view(out)), saved };
  };
  return { config, pass, parameters, layer, bias: view(bias) as Float64Array, x, run };
}

type Vector = readonly number[];

function rowsOf(bench: Bench, name: string, start: number, end: number): Vector[] {
  const { value } = bench.parameters.get(`${PREFIX}.${name}`);
  const values = view(value);
  const columns = value.columns;
  return Array.from({ length: end - start }, (_, row) =>
    Array.from(values.subarray((start + row) * columns, (start + row + 1) * columns)),
  );
}

const times = (matrix: readonly Vector[], x: Vector): number[] =>
  matrix.map((row) => row.reduce((sum, w, index) => sum + w * x[index]!, 0));

/** down · (silu(gate · x) ⊙ (up · x)) */
function network(gate: Vector[], up: Vector[], down: Vector[], x: Vector): number[] {
  const ups = times(up, x);
  const activation = times(gate, x).map((z, index) => (z / (1 + Math.exp(-z))) * ups[index]!);
  return times(down, activation);
}

/**
 * What the layer computes for one token, by the formulas of the report (sigmoid gate, one group).
 */
function naive(bench: Bench, x: Vector): { out: number[]; chosen: number[] } {
  const { numRoutedExperts, numExpertsPerToken, moeIntermediateDim: width } = bench.config;
  const { hiddenDim, numSharedExperts, routedScalingFactor, normTopkProb } = bench.config;
  const logits = times(rowsOf(bench, "gate", 0, numRoutedExperts), x);
  const scores = logits.map((z) => 1 / (1 + Math.exp(-z)));
  const chosen = scores
    .map((score, expert) => ({ expert, biased: score + bench.bias[expert]! }))
    .sort((a, b) => b.biased - a.biased)
    .slice(0, numExpertsPerToken)
    .map(({ expert }) => expert);
  const total = chosen.reduce((sum, expert) => sum + scores[expert]!, 0);
  const out = new Array<number>(hiddenDim).fill(0);
  const add = (values: Vector, weight: number): void => {
    values.forEach((value, index) => {
      out[index]! += weight * value;
    });
  };
  for (const expert of chosen) {
    const first = 2 * expert * width;
    const gate = rowsOf(bench, "experts.gateUp", first, first + width);
    const up = rowsOf(bench, "experts.gateUp", first + width, first + 2 * width);
    const down = rowsOf(bench, "experts.down", expert * hiddenDim, (expert + 1) * hiddenDim);
    const weight = (scores[expert]! / (normTopkProb ? total : 1)) * routedScalingFactor;
    add(network(gate, up, down, x), weight);
  }
  const shared = numSharedExperts * width;
  if (shared > 0) {
    const gate = rowsOf(bench, "sharedExperts.gateUp", 0, shared);
    const up = rowsOf(bench, "sharedExperts.gateUp", shared, 2 * shared);
    add(network(gate, up, rowsOf(bench, "sharedExperts.down", 0, hiddenDim), x), 1);
  }
  return { out, chosen };
}

function assertClose(actual: Float64Array, expected: Vector, what: string): void {
  actual.forEach((value, index) => {
    const error = Math.abs(value - expected[index]!);
    assert.ok(error < 1e-10, `${what} [${index}]: ${value}, expected ${expected[index]}`);
  });
}

const tokenOf = (bench: Bench, token: number): number[] =>
  Array.from(view(bench.x).subarray(token * TINY.hiddenDim, (token + 1) * TINY.hiddenDim));

for (const overrides of [{}, { normTopkProb: false, numSharedExperts: 0, numExpertsPerToken: 3 }]) {
  test(`the layer equals a plain loop, with ${JSON.stringify(overrides)}`, async () => {
    await using device = await openReferenceDevice();
    const bench = makeBench(device, overrides);
    const { out } = bench.run();
    const expected = Array.from({ length: NUM_TOKENS }, (_, token) =>
      naive(bench, tokenOf(bench, token)),
    );
    assertClose(
      out,
      expected.flatMap((token) => token.out),
      `seed ${SEED}`,
    );
  });
}

test("the expert loads count every choice once", async () => {
  await using device = await openReferenceDevice();
  const bench = makeBench(device, { numExpertsPerToken: 3 });
  const load = expertLoadOf(bench.run().saved.gate);
  const expected = new Int32Array(bench.config.numRoutedExperts);
  for (let token = 0; token < NUM_TOKENS; token++) {
    for (const expert of naive(bench, tokenOf(bench, token)).chosen) expected[expert]!++;
  }
  assert.deepEqual(load, expected);
  assert.equal(
    load.reduce((sum, count) => sum + count, 0),
    3 * NUM_TOKENS,
  );
});

test("renaming the experts renames their loads and changes no output", async () => {
  await using device = await openReferenceDevice();
  const bench = makeBench(device, {});
  const before = bench.run();
  const { numRoutedExperts: experts } = bench.config;
  const order = Array.from({ length: experts }, (_, index) => (3 * index + 1) % experts);
  for (const name of ["gate", "experts.gateUp", "experts.down"]) {
    permute(view(bench.parameters.get(`${PREFIX}.${name}`).value), order);
  }
  permute(bench.bias, order);
  const after = bench.run();
  assertClose(after.out, [...before.out], "output after renaming");
  const load = expertLoadOf(before.saved.gate);
  assert.deepEqual(
    [...expertLoadOf(after.saved.gate)],
    order.map((expert) => load[expert]),
  );
});

/** Block `index` becomes what block `order[index]` was. */
function permute(values: Float32Array | Float64Array, order: readonly number[]): void {
  const before = values.slice();
  const span = values.length / order.length;
  order.forEach((from, index) => {
    values.set(before.subarray(from * span, (from + 1) * span), index * span);
  });
}

test("experts of other groups are not taken even if all biased scores are negative", async () => {
  await using device = await openReferenceDevice();
  const bench = makeBench(device, { numExpertGroups: 4, numChosenGroups: 1 });
  // Every biased score is below 0: a mask of 0 instead of −∞ would prefer the masked experts.
  bench.bias.forEach((value, expert) => {
    bench.bias[expert] = value - 5;
  });
  const choice = view(bench.run().saved.gate.choice);
  for (let token = 0; token < NUM_TOKENS; token++) {
    const groups = [0, 1].map((rank) => Math.floor(choice[2 * token + rank]! / 2));
    assert.equal(groups[0], groups[1], `token ${token} went to groups ${groups}`);
  }
});
