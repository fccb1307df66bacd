/** @file Cases of `layout-ranks.fixture.ts` run on threads and held to one process. */
import assert from "node:assert/strict";
import { defined } from "../../base/errors.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { difference } from "../../numerics/tolerance.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { formatLayout, numRanksOf } from "../../parallel/mesh.ts";
import { recipeFrom } from "../recipe/recipe-settings.ts";
import { PRECISION_RECIPES } from "../recipe/recipes.ts";
import { type LayoutCase, type LayoutReport, runInOneProcess } from "./layout-ranks.fixture.ts";

const PROGRAM = new URL("./layout-ranks.fixture.ts", import.meta.url);

/** How far a recipe's losses and gradients may lie from those of one process. */
export interface Kind {
  readonly recipe: PrecisionRecipe;
  /** Relative. */
  readonly loss: number;
  /** `difference` of the worst parameter's gradient. */
  readonly gradient: number;
}

/**
 * Sums in another order turn a few roundings. Results that experts on other ranks round to bf16 are
 * held to one process in src/training/data-parallel; here they come back as they are.
 */
export const KINDS: Readonly<Record<"f32" | "bf16" | "fp8", Kind>> = {
  f32: { recipe: PRECISION_RECIPES.f32, loss: 1e-6, gradient: 1e-10 },
  bf16: { recipe: PRECISION_RECIPES.bf16, loss: 1e-5, gradient: 3e-5 },
  fp8: {
    recipe: recipeFrom({ tensors: { combine: { format: "f32" } } }, "the test"),
    loss: 1e-4,
    gradient: 1e-4,
  },
};

/** A rank's reports, case by case. A busy machine is no reason to give a rank up. */
export async function runCases(
  cases: readonly LayoutCase[],
): Promise<readonly (readonly LayoutReport[])[]> {
  const numRanks = Math.max(...cases.map(({ layout }) => numRanksOf(layout.mesh)));
  const run = { numRanks, program: PROGRAM, input: cases, watchdogMs: 60_000 };
  const byRank = (await runOnThreads(run)) as (LayoutReport | null)[][];
  return cases.map((_, index) => byRank.flatMap((reports) => reports[index] ?? []));
}

/** `reports` of all ranks of one case. */
export async function assertEqualToOneProcess(
  { layout, recipe, numLayers }: LayoutCase,
  reports: readonly LayoutReport[],
  { loss, gradient }: Pick<Kind, "loss" | "gradient">,
): Promise<void> {
  const what = `${formatLayout(layout.mesh)} by ${layout.schedule} in ${recipe.name}`;
  await using device = await openCpuDevice({ numThreads: 1 });
  const expected = runInOneProcess(device, { recipe, numLayers });
  const { mean } = reports[0]!;
  const error = Math.abs(mean.loss / expected.mean.loss - 1);
  assert.ok(error < loss, `${what}: a loss of ${mean.loss}, not ${expected.mean.loss}`);
  if (recipe.name === "f32") assert.deepEqual(mean.expertLoad, expected.mean.expertLoad, what);
  const gathered = new Map(
    [...expected.gradients].map(([name, values]) => [name, new Float32Array(values.length)]),
  );
  let numElements = 0;
  for (const { mean: own, gradients, grownBytes } of reports) {
    assert.deepEqual(own, mean, `${what}: every rank knows the same`);
    // How much is under way at once is a matter of timing; arenas grow by sixteen megabytes.
    assert.ok(grownBytes < 2 ** 22, `${what}: a second step asked for ${grownBytes} bytes`);
    for (const { name, start, values } of gradients) {
      defined(gathered.get(name), name).set(values, start);
      numElements += values.length;
    }
  }
  const all = [...gathered.values()].reduce((sum, { length }) => sum + length, 0);
  assert.equal(numElements, all, `${what}: every element is moved by one rank`);
  for (const [name, values] of gathered) {
    const gap = difference(values, expected.gradients.get(name)!);
    assert.ok(gap < gradient, `${what}: ${name} differs by ${gap}`);
  }
}
