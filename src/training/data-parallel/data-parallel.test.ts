/**
 * @file Training on several ranks is training on one: the same losses, norms and parameters within
 * the tolerance of sums in another order, an n-th of the optimizer's memory, and states that go
 * over to any other number of ranks.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { difference } from "../../numerics/tolerance.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import type { TrainerInput, TrainerReport, TrainerRun } from "./trainer-ranks.fixture.ts";

/** Six micro-batches a step: four ranks have one or two each. */
const ADAMW = ["batch.sequences=6", "batch.rampFrom=6", "batch.microBatch=1"];
const ROUNDED = [...ADAMW, "recipe.tensors.moment.format=bf16", "recipe.stochasticRounding=true"];
const MUON = [...ROUNDED, "optimizer.name=muon"];
/** Ranks that share experts have as many micro-batches each. */
const FOUR = ["batch.sequences=4", "batch.rampFrom=4", "batch.microBatch=1"];
const FOUR_MUON = [...FOUR, "optimizer.name=muon"];
const STEPS = 3;
/** Most tokens want two of eight experts. */
const SKEWED = {
  settings: [...FOUR, "model.numRoutedExperts=8", "biasSpeed.first=0", "average.decay=0.9"],
  skew: 0.3,
  steps: 6,
};
const OFTEN = { everySteps: 2, leastGain: 0.05 };
const WINDOW = { kind: "window", numCounts: 2 } as const;
const AVERAGE = { kind: "movingAverage", decay: 0.5 } as const;

const RUNS: readonly TrainerRun[] = [
  { dp: 1, settings: ADAMW, steps: STEPS },
  { dp: 2, settings: ADAMW, steps: STEPS },
  { dp: 3, settings: ADAMW, steps: STEPS },
  { dp: 4, settings: ADAMW, steps: STEPS },
  { dp: 1, settings: MUON, steps: STEPS },
  { dp: 3, settings: MUON, steps: STEPS },
  { dp: 1, settings: ROUNDED, steps: STEPS },
  { dp: 2, settings: ROUNDED, steps: STEPS },
  // The first is on two ranks; the others go on from it.
  { dp: 2, settings: ADAMW, steps: 2, from: 1 },
  { dp: 1, settings: ADAMW, steps: 2, from: 1 },
  { dp: 4, settings: ADAMW, steps: 2, from: 1 },
  { dp: 2, settings: ADAMW, steps: STEPS + 2 },
  { dp: 1, settings: FOUR, steps: STEPS },
  { dp: 2, ep: 2, settings: FOUR, steps: STEPS },
  { dp: 1, settings: FOUR_MUON, steps: STEPS },
  { dp: 1, ep: 4, settings: FOUR_MUON, steps: STEPS },
  { ...SKEWED, dp: 1 },
  { ...SKEWED, dp: 1, ep: 4, numRedundant: 4, balance: { ...OFTEN, history: WINDOW } },
  { ...SKEWED, dp: 2, ep: 2, numRedundant: 2, balance: { ...OFTEN, history: AVERAGE } },
];

/** One rank's report of each run, null where it had no part; by rank. */
type Reports = readonly (readonly (TrainerReport | null)[])[];

let running: Promise<Reports> | null = null;

/** All runs, once for all tests. A busy machine is no reason to give a rank up. */
function runAll(): Promise<Reports> {
  const program = new URL("./trainer-ranks.fixture.ts", import.meta.url);
  const input: TrainerInput = { runs: RUNS };
  running ??= runOnThreads({ numRanks: 4, program, input, watchdogMs: 60_000 }) as Promise<Reports>;
  return running;
}

function reportOf(reports: Reports, run: number, rank = 0): TrainerReport {
  const report = reports[rank]![run];
  assert.ok(report, `run ${run} on rank ${rank}`);
  return report;
}

/** What a run has computed, against another. */
function assertClose(reports: Reports, run: number, expected: number): void {
  const [actual, reference] = [reportOf(reports, run), reportOf(reports, expected)];
  const what = `run ${run} against ${expected}`;
  assert.equal(actual.outcomes.length, reference.outcomes.length);
  for (const [step, outcome] of actual.outcomes.entries()) {
    const { loss, gradNorm, mtpLosses, expertLoad } = reference.outcomes[step]!;
    assertRelative(outcome.loss, loss, 1e-5, `${what}, loss of step ${step}`);
    assertRelative(outcome.mtpLosses[0]!, mtpLosses[0]!, 1e-5, `${what}, MTP loss of step ${step}`);
    assertRelative(outcome.gradNorm, gradNorm, 1e-4, `${what}, norm of step ${step}`);
    if (step === 0) assert.deepEqual(outcome.expertLoad, expertLoad, what);
  }
  assert.deepEqual(actual.problems, [], `${what}: copies of an expert`);
  const gap = difference(actual.values, reference.values);
  assert.ok(gap < 1e-6, `${what}: parameters differ by ${gap}`);
}

function assertRelative(actual: number, expected: number, error: number, what: string): void {
  assert.ok(Math.abs(actual / expected - 1) < error, `${what}: ${actual}, not ${expected}`);
}

test("two, three and four ranks train as one, with AdamW, Muon and rounded moments", async () => {
  const reports = await runAll();
  for (const run of [1, 2, 3]) assertClose(reports, run, 0);
  assertClose(reports, 5, 4);
  assertClose(reports, 7, 6);
});

test("ranks that share experts train as one process, with AdamW and Muon", async () => {
  const reports = await runAll();
  assertClose(reports, 13, 12);
  assertClose(reports, 15, 14);
});

test("ranks that share experts count what they send in a step; all on one host", async () => {
  const reports = await runAll();
  for (const rank of [0, 3]) {
    for (const { exchanged } of reportOf(reports, 15, rank).outcomes) {
      assert.ok(exchanged !== null && exchanged.withinHost > 0 && exchanged.acrossHosts === 0);
    }
  }
  assert.equal(reportOf(reports, 1).outcomes[0]!.exchanged, null);
});

test("experts that follow their load make ranks even, and training stays what it is", async () => {
  const reports = await runAll();
  for (const run of [17, 18]) {
    assertClose(reports, run, 16);
    const [, first, , second] = reportOf(reports, run).outcomes;
    for (const { layerIndex, before, after, numMoves } of first!.balances) {
      const what = `run ${run}, layer ${layerIndex}`;
      assert.ok(numMoves > 0 && before > 1.3, `${what}: ${before}, ${numMoves} moves`);
      assert.ok(after < 0.75 * before, `${what}: from ${before} to ${after}`);
    }
    for (const { layerIndex, before } of second!.balances) {
      assert.ok(before < 1.4, `run ${run}, layer ${layerIndex}: ${before} two steps later`);
    }
    assert.deepEqual(reportOf(reports, run).outcomes[2]!.balances, []);
  }
});

test("all ranks hold the same and tell the same; equal runs have equal bits", async () => {
  const reports = await runAll();
  for (const [run, { dp, ep = 1 }] of RUNS.entries()) {
    const numTrained = Math.floor(4 / (dp * ep)) * dp * ep;
    for (let rank = 1; rank < numTrained; rank++) {
      // Beyond the first group: the same layout on other ranks, another time.
      const { values, outcomes, state } = reportOf(reports, run, rank);
      const told = (list: TrainerReport["outcomes"]) =>
        list.map((one) => ({ ...one, exchanged: 0 }));
      const first = reportOf(reports, run).outcomes;
      assert.deepEqual(told(outcomes), told(first), `run ${run}, rank ${rank}`);
      assert.deepEqual(values, reportOf(reports, run).values, `run ${run}, rank ${rank}`);
      if (ep > 1) continue;
      assert.deepEqual(state, reportOf(reports, run).state, `run ${run}, rank ${rank}`);
    }
  }
});

test("each of n ranks keeps an n-th of the moments and of the average", async () => {
  const reports = await runAll();
  const share = (run: number, alone: number): number =>
    Math.max(...reports.map(({ [run]: report }) => report?.stateBytes ?? 0)) /
    reportOf(reports, alone).stateBytes;
  for (const run of [1, 2, 3]) {
    const exact = 1 / RUNS[run]!.dp;
    assert.ok(Math.abs(share(run, 0) - exact) < 0.05, `${share(run, 0)} of ${exact}`);
  }
  // Muon's shares end between matrices.
  assert.ok(share(5, 4) < 0.45, `${share(5, 4)}`);
});

test("a state of two ranks goes on, on one and on four ranks, and on two to the bit", async () => {
  const reports = await runAll();
  for (const run of [9, 10]) assertClose(reports, run, 8);
  const uninterrupted = reportOf(reports, 11);
  assert.deepEqual(reportOf(reports, 8).outcomes, uninterrupted.outcomes.slice(STEPS));
  assert.deepEqual(reportOf(reports, 8).values, uninterrupted.values);
  assert.deepEqual(reportOf(reports, 8).state, uninterrupted.state);
});
