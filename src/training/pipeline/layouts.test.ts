/**
 * @file Losses and gradients over ranks of a pipeline, of experts and of data are those of one
 * process, and equal runs have equal bits. Every layout of eight ranks is in layouts.nightly.ts,
 * pipelines alone in src/model/pipeline.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseLayout } from "../../parallel/mesh.ts";
import { assertEqualToOneProcess, KINDS, type Kind, runCases } from "./layout-check.fixture.ts";
import type { LayoutCase } from "./layout-ranks.fixture.ts";
import type { TrainingLayout } from "./training-layout.ts";

const ROWS: readonly (readonly [axes: string, TrainingLayout["schedule"], Kind])[] = [
  ["pp=2,ep=2,dp=2", "dualpipe", KINDS.f32],
  ["ep=4", "dualpipev", KINDS.fp8],
  ["pp=2,ep=2", "zb1p", KINDS.bf16],
  ["pp=2,ep=2", "dualpipe", KINDS.fp8],
  ["pp=2,ep=2", "dualpipe", KINDS.fp8],
];

test("gradients over ranks along every axis are those of one process, and repeat", async () => {
  const cases = ROWS.map(([axes, schedule, { recipe }]): LayoutCase => {
    // Two hosts in the largest exchange.
    const layout = { mesh: parseLayout(axes), schedule, ranksPerHost: 2 };
    return { layout, recipe, numLayers: 3 };
  });
  const reports = await runCases(cases);
  for (const [index, [, , kind]] of ROWS.entries()) {
    await assertEqualToOneProcess(cases[index]!, reports[index]!, kind);
  }
  const bits = (index: number) =>
    reports.at(index)!.map(({ mean, gradients }) => ({ mean, gradients }));
  assert.deepEqual(bits(-1), bits(-2));
});
