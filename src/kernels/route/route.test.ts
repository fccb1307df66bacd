/**
 * @file The gate's decision against an independent formulation, and its gradient by central
 * differences.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { type RoutingRule, route, routeBackward } from "./contract.ts";

const SEED = 99;
const TOKENS = 24;
const SIGMOID_GROUPED: RoutingRule = {
  numExperts: 12,
  numChosen: 3,
  scoring: "sigmoid",
  numGroups: 4,
  numChosenGroups: 2,
  groupScore: "top2",
  normalise: true,
  routedScale: 2.5,
};
const RULES: Readonly<Record<string, RoutingRule>> = {
  "V3: sigmoid, groups by their top two, normalised": SIGMOID_GROUPED,
  "V2-Lite: softmax, greedy, not normalised": {
    ...SIGMOID_GROUPED,
    scoring: "softmax",
    numGroups: 1,
    numChosenGroups: 1,
    normalise: false,
    routedScale: 1,
  },
  "V2: softmax, groups by their maximum": {
    ...SIGMOID_GROUPED,
    scoring: "softmax",
    groupScore: "max",
    normalise: false,
    routedScale: 16,
  },
  "groups of one expert": { ...SIGMOID_GROUPED, numGroups: 12, numChosenGroups: 5 },
};

let device: Device;
let arena: Arena;
before(async () => {
  device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  arena = new Arena(device.memory, "route");
});
after(() => device[Symbol.asyncDispose]());

interface Routed {
  readonly choice: number[][];
  readonly weight: number[][];
  readonly plainChoice: number[][];
  readonly scores: Tensor<"f64">;
  readonly choiceTensor: Tensor<"i32">;
}

function runRoute(rule: RoutingRule, logits: readonly number[], bias: readonly number[]): Routed {
  const tokens = logits.length / rule.numExperts;
  const logitsTensor = arena.allocate("f64", [tokens, rule.numExperts]);
  const biasTensor = arena.allocate("f64", [1, rule.numExperts]);
  const scores = arena.allocate("f64", [tokens, rule.numExperts]);
  const choice = arena.allocate("i32", [tokens, rule.numChosen]);
  const weight = arena.allocate("f64", [tokens, rule.numChosen]);
  const plainChoice = arena.allocate("i32", [tokens, rule.numChosen]);
  fillFrom(logitsTensor, logits);
  fillFrom(biasTensor, bias);
  const outputs = { scores, choice, weight, plainChoice };
  route(device, { rule, logits: logitsTensor, bias: biasTensor, ...outputs });
  const rowsOf = (values: ArrayLike<number>): number[][] =>
    Array.from({ length: tokens }, (_, token) =>
      Array.from(values).slice(token * rule.numChosen, (token + 1) * rule.numChosen),
    );
  return {
    choice: rowsOf(view(choice)),
    weight: rowsOf(view(weight)),
    plainChoice: rowsOf(view(plainChoice)),
    scores,
    choiceTensor: choice,
  };
}

/** The same decision by sorting, written from the report's text. */
function routeBySorting(rule: RoutingRule, logits: readonly number[], bias: readonly number[]) {
  const exps = logits.map(Math.exp);
  const total = exps.reduce((sum, value) => sum + value);
  const scores =
    rule.scoring === "softmax"
      ? exps.map((value) => value / total)
      : logits.map((value) => 1 / (1 + Math.exp(-value)));
  const biased = scores.map((score, expert) => score + bias[expert]!);
  const perGroup = rule.numExperts / rule.numGroups;
  const groups = Array.from({ length: rule.numGroups }, (_, group) => {
    const members = biased.slice(group * perGroup, (group + 1) * perGroup).sort((a, b) => b - a);
    const score = rule.groupScore === "max" ? members[0]! : members[0]! + (members[1] ?? 0);
    return { group, score };
  });
  const kept = groups.sort((a, b) => b.score - a.score).slice(0, rule.numChosenGroups);
  const allowed = new Set(kept.map(({ group }) => group));
  const chosen = biased
    .map((score, expert) => ({ score, expert }))
    .filter(({ expert }) => allowed.has(Math.floor(expert / perGroup)))
    .sort((a, b) => b.score - a.score)
    .slice(0, rule.numChosen)
    .map(({ expert }) => expert);
  const sum = rule.normalise ? chosen.reduce((s, expert) => s + scores[expert]!, 1e-20) : 1;
  return { chosen, weights: chosen.map((expert) => (scores[expert]! / sum) * rule.routedScale) };
}

for (const [name, rule] of Object.entries(RULES)) {
  test(`the choice and weights equal sorting: ${name}`, () => {
    using _mark = arena.mark();
    const random = new Random(SEED, name);
    const logits = Array.from({ length: TOKENS * rule.numExperts }, () => 2 * random.normal());
    const bias = Array.from({ length: rule.numExperts }, () => 0.3 * random.normal());
    const { choice, weight, plainChoice } = runRoute(rule, logits, bias);
    const plainRule = { ...rule, numGroups: 1, numChosenGroups: 1 };
    const noBias = bias.map(() => 0);
    for (let token = 0; token < TOKENS; token++) {
      const row = logits.slice(token * rule.numExperts, (token + 1) * rule.numExperts);
      const wanted = routeBySorting(rule, row, bias);
      const { chosen } = routeBySorting(plainRule, row, noBias);
      assert.deepEqual(plainChoice[token], chosen, `token ${token} by scores alone, seed ${SEED}`);
      assert.deepEqual(choice[token], wanted.chosen, `token ${token}, seed ${SEED}`);
      wanted.weights.forEach((value, rank) => {
        assert.ok(Math.abs(weight[token]![rank]! - value) < 1e-12);
      });
    }
  });

  test(`gradients agree with central differences: ${name}`, () => {
    using _mark = arena.mark();
    const random = new Random(SEED, `gradient ${name}`);
    const experts = rule.numExperts;
    const tokens = 4;
    const sequences = 2;
    const logits = Array.from({ length: tokens * experts }, () => 2 * random.normal());
    const bias = Array.from({ length: experts }, () => 0.3 * random.normal());
    const dWeight = Array.from({ length: tokens * rule.numChosen }, () => random.normal());
    const balance = Array.from({ length: sequences * experts }, () => random.normal());
    const base = runRoute(rule, logits, bias);
    const objective = (at: readonly number[]): number => {
      using _inner = arena.mark();
      const { weight, scores, choice } = runRoute(rule, at, bias);
      assert.deepEqual(choice, base.choice, "the perturbation must not change the choice");
      const values = view(scores);
      let sum = weight.flat().reduce((s, w, index) => s + w * dWeight[index]!, 0);
      for (let token = 0; token < tokens; token++) {
        const row = Array.from(values.slice(token * experts, (token + 1) * experts));
        const total = row.reduce((s, score) => s + score);
        const sequence = Math.floor((token * sequences) / tokens);
        row.forEach((score, expert) => {
          sum += (score / total) * balance[sequence * experts + expert]!;
        });
      }
      return sum;
    };
    const dWeightTensor = arena.allocate("f64", [tokens, rule.numChosen]);
    const balanceTensor = arena.allocate("f64", [sequences, experts]);
    const dLogits = arena.allocate("f64", [tokens, experts]);
    fillFrom(dWeightTensor, dWeight);
    fillFrom(balanceTensor, balance);
    const { scores, choiceTensor: choice } = base;
    const call = { rule, scores, choice, dWeight: dWeightTensor, balance: balanceTensor, dLogits };
    routeBackward(device, call);
    const gradient = view(dLogits);
    for (let index = 0; index < logits.length; index++) {
      const step = 1e-5;
      const shifted = (by: number): number =>
        objective(logits.map((value, at) => (at === index ? value + by : value)));
      const numeric = (shifted(step) - shifted(-step)) / (2 * step);
      assert.ok(Math.abs(gradient[index]! - numeric) < 1e-7, `logit ${index}, seed ${SEED}`);
    }
  });
}

test("masked groups are out even when every kept score is negative", () => {
  using _mark = arena.mark();
  const rule = {
    ...SIGMOID_GROUPED,
    numExperts: 4,
    numGroups: 2,
    numChosenGroups: 1,
    numChosen: 2,
  };
  // With a mask of 0 instead of −∞ the second group would win these: all kept biased scores are
  // below 0.
  const { choice } = runRoute(rule, [1, 1, 0, 0], [-5, -5, -6, -6]);
  assert.deepEqual(choice, [[0, 1]]);
});

test("equal scores go to the lower expert, and a token of NaN still gets distinct experts", () => {
  using _mark = arena.mark();
  const logits = [...Array(12).fill(0.5), ...Array(12).fill(Number.NaN)];
  const { choice } = runRoute(SIGMOID_GROUPED, logits, Array(12).fill(0));
  assert.deepEqual(choice[0], [0, 1, 2]);
  assert.equal(new Set(choice[1]).size, 3);
});
