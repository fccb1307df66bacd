/** @file The sequence-wise balance loss against its formula, where bias and groups choose else. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { view } from "../tensor/view.ts";
import { balanceLossOf } from "./balance-loss.ts";
import { Gate } from "./gate.ts";
import {
  fillNormal,
  makePass,
  openReferenceDevice,
  randomParameters,
  TINY,
} from "./test-support.ts";

const SEED = 41;
const NUM_EXPERTS = TINY.numRoutedExperts;
const NUM_CHOSEN = TINY.numExpertsPerToken;
const BATCH = { numSequences: 2, seqLength: 6, balanceScale: 0.25 };

/** f_i and P_i of one sequence's scores, by the report's formulas. */
function sharesAndMeans(scores: readonly number[][]): { shares: number[]; means: number[] } {
  const shares = new Array<number>(NUM_EXPERTS).fill(0);
  const means = new Array<number>(NUM_EXPERTS).fill(0);
  for (const row of scores) {
    const order = row.map((_, expert) => expert).sort((a, b) => row[b]! - row[a]!);
    for (const expert of order.slice(0, NUM_CHOSEN)) {
      shares[expert]! += NUM_EXPERTS / (NUM_CHOSEN * scores.length);
    }
    const total = row.reduce((sum, score) => sum + score, 0);
    row.forEach((score, expert) => {
      means[expert]! += score / total / scores.length;
    });
  }
  return { shares, means };
}

test("the loss counts the choices that the scores alone would make", async () => {
  await using device = await openReferenceDevice();
  // Groups and a strong bias: the tokens go elsewhere, the loss does not follow them.
  const config = { ...TINY, numExpertGroups: 4, numChosenGroups: 1 };
  const pass = makePass(device, config, BATCH);
  const random = new Random(SEED, "balance");
  const bias = pass.saved.allocate("f64", [1, NUM_EXPERTS]);
  fillNormal(bias, random, 3);
  const x = pass.saved.allocate("f64", [12, config.hiddenDim]);
  fillNormal(x, random);
  const parameters = randomParameters(device, config, SEED);
  const gate = new Gate(config, parameters.get("layers.1.moe.gate"), bias);
  const { scores, balance } = gate.forward(pass, x);
  const rows = Array.from({ length: 12 }, (_, token) =>
    Array.from(view(scores).subarray(token * NUM_EXPERTS, (token + 1) * NUM_EXPERTS)),
  );
  const sequences = [rows.slice(0, 6), rows.slice(6)].map(sharesAndMeans);
  const losses = sequences.map(({ shares, means }) =>
    shares.reduce((sum, share, expert) => sum + share * means[expert]!, 0),
  );
  const expected = (losses[0]! + losses[1]!) / 2;
  const loss = balanceLossOf(balance);
  assert.ok(Math.abs(loss - expected) < 1e-12, `${loss}, expected ${expected}`);
  const gradient = view(balance!.gradient);
  sequences.forEach(({ shares }, sequence) => {
    shares.forEach((share, expert) => {
      const value = gradient[sequence * NUM_EXPERTS + expert]!;
      assert.ok(Math.abs(value - (0.25 * share) / 12) < 1e-15, `gradient ${value} of ${share}`);
    });
  });
});

test("scores that are all alike in their sum over a sequence give a loss of one", async () => {
  await using device = await openReferenceDevice();
  const pass = makePass(device, TINY, { ...BATCH, numSequences: 1, seqLength: 8 });
  const parameters = randomParameters(device, TINY, SEED);
  const gateWeight = parameters.get("layers.1.moe.gate");
  const weight = view(gateWeight.value).fill(0);
  // Token t prefers experts t and t + 1, so that each expert is chosen twice and liked alike.
  const x = pass.saved.allocateZeros("f64", [8, TINY.hiddenDim]);
  for (let at = 0; at < 8; at++) {
    weight[at * TINY.hiddenDim + at] = 2;
    weight[((at + 1) % 8) * TINY.hiddenDim + at] = 1;
    view(x)[at * TINY.hiddenDim + at] = 1;
  }
  const bias = pass.saved.allocateZeros("f64", [1, NUM_EXPERTS]);
  const { balance } = new Gate(TINY, gateWeight, bias).forward(pass, x);
  const loss = balanceLossOf(balance);
  assert.ok(Math.abs(loss - 1) < 1e-12, `loss ${loss}`);
});
