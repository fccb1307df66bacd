/**
 * @file A model whose experts are on several ranks is the model of one process: losses, loads and
 * gradients, and the bytes that cross hosts are those of the published formula.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { difference } from "../../numerics/tolerance.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { crossingBytes } from "../../parallel/expert/exchange/topology.ts";
import { recipeFrom } from "../recipe/recipe-settings.ts";
import { PRECISION_RECIPES } from "../recipe/recipes.ts";
import {
  CONFIG,
  type ExpertRunReport,
  runInOneProcess,
  SEQUENCE_LENGTH,
} from "./expert-ranks.fixture.ts";

const NUM_RANKS = 4;
/** Two are equal; in the last each rank has all experts, and nothing is sent. */
const LAYOUTS = [
  { ep: 2, ranksPerHost: 2 },
  { ep: 4, ranksPerHost: 4 },
  { ep: 4, ranksPerHost: 2 },
  { ep: 4, ranksPerHost: 1 },
  { ep: 4, ranksPerHost: 1 },
  { ep: 1, ranksPerHost: 1 },
] as const;

interface Case {
  readonly name: string;
  readonly recipe: PrecisionRecipe;
  readonly starves: boolean;
  /** Largest relative difference of a loss. */
  readonly lossError: number;
  /** Largest `difference` of a parameter's gradient, and of all gradients together. */
  readonly gradient: number;
  readonly together: number;
}

/**
 * The same sums in another order turn a few roundings to bf16, rarely one to FP8; results that are
 * rounded to bf16 turn many.
 */
const CASES: readonly Case[] = [
  {
    name: "f32",
    recipe: PRECISION_RECIPES.f32,
    starves: false,
    lossError: 1e-6,
    gradient: 1e-10,
    together: 1e-10,
  },
  {
    name: "bf16",
    recipe: PRECISION_RECIPES.bf16,
    starves: false,
    lossError: 1e-5,
    gradient: 3e-5,
    together: 3e-5,
  },
  {
    name: "fp8 with results in f32",
    recipe: recipeFrom({ tensors: { combine: { format: "f32" } } }, "the test"),
    starves: false,
    lossError: 1e-4,
    gradient: 1e-6,
    together: 1e-6,
  },
  {
    name: "fp8",
    recipe: PRECISION_RECIPES.fp8,
    starves: false,
    lossError: 2e-3,
    gradient: 5e-2,
    together: 8e-3,
  },
  {
    name: "fp8 with a rank that gets no tokens",
    recipe: PRECISION_RECIPES.fp8,
    starves: true,
    lossError: 2e-3,
    gradient: 5e-2,
    together: 8e-3,
  },
];
const RUNS = CASES.flatMap(({ recipe, starves }) =>
  LAYOUTS.map((layout) => ({ recipe, starves, ...layout })),
);

/** By rank, then by run. */
type Reports = readonly (readonly ExpertRunReport[])[];

let running: Promise<Reports> | null = null;

/** All runs, once for all tests. A busy machine is no reason to give a rank up. */
function runAll(): Promise<Reports> {
  const program = new URL("./expert-ranks.fixture.ts", import.meta.url);
  const run = { numRanks: NUM_RANKS, program, input: RUNS, watchdogMs: 60_000 };
  running ??= runOnThreads(run) as Promise<Reports>;
  return running;
}

function reportOf(
  reports: Reports,
  caseIndex: number,
  layout: number,
  rank: number,
): ExpertRunReport {
  return reports[rank]![caseIndex * LAYOUTS.length + layout]!;
}

for (const [index, { name, recipe, starves, lossError, ...tolerance }] of CASES.entries()) {
  test(`losses, loads and gradients in ${name} are those of one process`, async () => {
    const reports = await runAll();
    await using device = await openCpuDevice({ numThreads: 1 });
    const expected = runInOneProcess(device, { recipe, starves }, NUM_RANKS);
    const expectedAll = [...expected.gradients.values()].flatMap((values) => [...values]);
    for (const [layout, { ep, ranksPerHost }] of LAYOUTS.entries()) {
      const what = `${ep} expert ranks, ${ranksPerHost} a host`;
      for (const [rank, { loss, expertLoad }] of expected.results.entries()) {
        const { result, gradients } = reportOf(reports, index, layout, rank);
        assert.ok(Math.abs(result.loss / loss - 1) < lossError, `${what}: ${result.loss}, ${loss}`);
        if (!name.startsWith("fp8")) assert.deepEqual(result.expertLoad, expertLoad, what);
        for (const [parameter, gradient] of gradients) {
          const gap = difference(gradient, expected.gradients.get(parameter)!);
          assert.ok(gap < tolerance.gradient, `${what}, ${parameter}: ${gap}`);
        }
        const all = [...gradients.values()].flatMap((values) => [...values]);
        const gap = difference(all, expectedAll);
        assert.ok(gap < tolerance.together, `${what}: all gradients ${gap}`);
      }
    }
  });
}

test("a layout gives the same bits twice, and every rank the same gradients", async () => {
  const reports = await runAll();
  for (const [index] of CASES.entries()) {
    for (let rank = 0; rank < NUM_RANKS; rank++) {
      assert.deepEqual(reportOf(reports, index, 3, rank), reportOf(reports, index, 4, rank));
      assert.deepEqual(
        reportOf(reports, index, 3, rank).gradients,
        reportOf(reports, index, 3, 0).gradients,
      );
    }
  }
});

test("tokens cross to their groups' hosts alone, in the published formula's bytes", async () => {
  const reports = await runAll();
  const { numExpertsPerToken, hiddenDim, numChosenGroups } = CONFIG;
  const published = crossingBytes(hiddenDim);
  // What the formula leaves out: choices and weights there, gradients of weights back.
  const [choices, weights] = [4 * numExpertsPerToken, 4 * numExpertsPerToken];
  const fp8 = CASES.findIndex(({ name }) => name === "fp8");
  const total = (pick: (report: ExpertRunReport) => number): number =>
    reports.reduce((sum, _, rank) => sum + pick(reportOf(reports, fp8, 3, rank)), 0);
  const combined = total((report) => report.combined.acrossHosts);
  const crossings = combined / (2 * published.combine + weights);
  assert.ok(Number.isInteger(crossings), `${combined} bytes are ${crossings} crossings`);
  assert.equal(
    total((report) => report.dispatched.acrossHosts),
    crossings * (2 * published.dispatch + choices + weights),
  );
  // Two MoE layers; a host has one group of experts.
  const tokens = 2 * NUM_RANKS * SEQUENCE_LENGTH;
  assert.ok(crossings > 0 && crossings <= tokens * numChosenGroups, `${crossings} of ${tokens}`);
});
