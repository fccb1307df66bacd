/** @file The balance loss against its formula, and its gradient by central differences. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { sequenceBalance } from "./contract.ts";

const SEED = 17;
const [SEQUENCES, TOKENS, EXPERTS, CHOSEN] = [3, 5, 6, 2];
const SCALE = 0.7;

let device: Device;
let arena: Arena;
before(async () => {
  device = await openCpuDevice({ numThreads: 2 });
  arena = new Arena(device.memory, "balance");
});
after(() => device[Symbol.asyncDispose]());

const random = new Random(SEED, "balance");
const SCORES = Array.from({ length: SEQUENCES * TOKENS * EXPERTS }, () => 0.1 + random.uniform());
/** Neighbours, so that no token chooses an expert twice. */
const CHOICE = Array.from({ length: SEQUENCES * TOKENS }, () => random.below(EXPERTS)).flatMap(
  (expert) => Array.from({ length: CHOSEN }, (_, rank) => (expert + rank) % EXPERTS),
);

function run(dtype: "f32" | "f64", scores: readonly number[]) {
  const scoresTensor = arena.allocate(dtype, [SEQUENCES * TOKENS, EXPERTS]);
  const choice = arena.allocate("i32", [SEQUENCES * TOKENS, CHOSEN]);
  const gradient = arena.allocate(dtype, [SEQUENCES, EXPERTS]);
  const terms = arena.allocate("f64", [SEQUENCES, EXPERTS]);
  fillFrom(scoresTensor, scores);
  fillFrom(choice, CHOICE);
  sequenceBalance(device, { scores: scoresTensor, choice, scale: SCALE, gradient, terms });
  return { gradient: view(gradient), terms: view(terms) };
}

/** f and P of an expert in a sequence, by the report's formulas. */
function shareAndMean(scores: readonly number[], sequence: number, expert: number) {
  let [chosen, mean] = [0, 0];
  for (let token = sequence * TOKENS; token < (sequence + 1) * TOKENS; token++) {
    const row = scores.slice(token * EXPERTS, (token + 1) * EXPERTS);
    if (CHOICE.slice(token * CHOSEN, (token + 1) * CHOSEN).includes(expert)) chosen++;
    mean += row[expert]! / row.reduce((sum, score) => sum + score) / TOKENS;
  }
  return { share: (EXPERTS * chosen) / (CHOSEN * TOKENS), mean };
}

for (const [dtype, errorMax] of [
  ["f64", 1e-15],
  ["f32", 1e-6],
] as const) {
  test(`terms and gradient in ${dtype} are those of the formula`, () => {
    using _mark = arena.mark();
    const { gradient, terms } = run(dtype, SCORES);
    for (let at = 0; at < SEQUENCES * EXPERTS; at++) {
      const { share, mean } = shareAndMean(SCORES, Math.floor(at / EXPERTS), at % EXPERTS);
      assert.ok(Math.abs(terms[at]! - share * mean) < errorMax, `term ${at}, seed ${SEED}`);
      const expected = (SCALE * share) / (TOKENS * SEQUENCES);
      assert.ok(Math.abs(gradient[at]! - expected) < errorMax, `gradient ${at}, seed ${SEED}`);
    }
  });
}

test("the gradient agrees with central differences of the loss", () => {
  using _mark = arena.mark();
  const { gradient } = run("f64", SCORES);
  const objective = (scores: readonly number[]): number => {
    using _inner = arena.mark();
    return (SCALE * run("f64", scores).terms.reduce((sum, term) => sum + term, 0)) / SEQUENCES;
  };
  for (let at = 0; at < SCORES.length; at++) {
    // The loss sees a score through all normalised scores of its token.
    const [token, expert] = [Math.floor(at / EXPERTS), at % EXPERTS];
    const row = SCORES.slice(token * EXPERTS, (token + 1) * EXPERTS);
    const total = row.reduce((sum, score) => sum + score);
    const of = gradient.subarray(Math.floor(token / TOKENS) * EXPERTS);
    const mean = row.reduce((sum, score, index) => sum + (score / total) * of[index]!, 0);
    const analytic = (of[expert]! - mean) / total;
    const step = 1e-5;
    const shifted = (by: number): number =>
      objective(SCORES.map((value, index) => (index === at ? value + by : value)));
    const numeric = (shifted(step) - shifted(-step)) / (2 * step);
    assert.ok(Math.abs(analytic - numeric) < 1e-9, `score ${at}, seed ${SEED}`);
  }
});

test("a choice of an expert that is not there is refused", () => {
  using _mark = arena.mark();
  const floats = (rows: number): Tensor<"f32"> => arena.allocateZeros("f32", [rows, 2]);
  const choice = arena.allocate("i32", [4, 1]);
  const terms = arena.allocateZeros("f64", [2, 2]);
  const call = { scores: floats(4), choice, scale: 1, gradient: floats(2), terms };
  fillFrom(choice, [0, 1, 1, 0]);
  sequenceBalance(device, call);
  fillFrom(choice, [0, 1, 2, 0]);
  assert.throws(() => sequenceBalance(device, call), /choice: indexes 0\.\.2 must lie in 0\.\.1/);
});
