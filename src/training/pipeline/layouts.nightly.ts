/** @file Every layout whose axes divide eight ranks, in every recipe, against one process. */
import { test } from "node:test";
import type { MeshShape } from "../../parallel/mesh.ts";
import { assertEqualToOneProcess, KINDS, runCases } from "./layout-check.fixture.ts";
import type { LayoutCase } from "./layout-ranks.fixture.ts";

const LENGTHS = [1, 2, 4, 8];
const MESHES: readonly MeshShape[] = LENGTHS.flatMap((pp) =>
  LENGTHS.flatMap((ep) => LENGTHS.map((dp) => ({ pp, ep, dp }))),
).filter(({ pp, ep, dp }) => pp * ep * dp <= 8);
/** A rank's memory is not given back; with so many the largest stay below what it may have. */
const CASES_AT_ONCE = 4;

function caseOf(mesh: MeshShape, recipe: LayoutCase["recipe"]): LayoutCase {
  const { pp } = mesh;
  const schedule = pp === 8 ? "1f1b" : pp === 1 ? "dualpipev" : "dualpipe";
  return { layout: { mesh, schedule, ranksPerHost: 8 }, recipe, numLayers: pp === 8 ? 7 : 3 };
}

for (const [name, kind] of Object.entries(KINDS)) {
  test(`over ${MESHES.length} layouts gradients in ${name} are those of one process`, async () => {
    for (let first = 0; first < MESHES.length; first += CASES_AT_ONCE) {
      const meshes = MESHES.slice(first, first + CASES_AT_ONCE);
      const cases = meshes.map((mesh) => caseOf(mesh, kind.recipe));
      const reports = await runCases(cases);
      for (const [index, one] of cases.entries()) {
        await assertEqualToOneProcess(one, reports[index]!, kind);
      }
    }
  });
}
