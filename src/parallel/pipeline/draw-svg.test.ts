/** @file The picture holds every action where and as wide as it is timed. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { drawSvg } from "./draw-svg.ts";
import { makeSchedule } from "./schedules/kinds.ts";
import { fixedCosts, simulate, UNIT_COSTS } from "./simulate.ts";

test("every half of every action is drawn, and the widths of a rank are its busy time", () => {
  const size = { numRanks: 4, numMicroBatches: 10, numStagesPerRank: 1 };
  const schedule = makeSchedule("dualpipe", size);
  const timeline = simulate(schedule, fixedCosts(UNIT_COSTS));
  const svg = drawSvg(schedule.layout, [{ heading: "a < b & c", timeline }]);
  assert.match(svg, />a &lt; b &amp; c</);
  const rows = new Map<number, number>();
  for (const [, y, width, height] of svg.matchAll(
    /<rect x="[\d.]+" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^>]*><title>/g,
  )) {
    const row = Math.floor((Number(y) - 34) / 26);
    const share = Number(height) === 24 ? 1 : 0.5;
    rows.set(row, (rows.get(row) ?? 0) + Number(width) * share);
  }
  assert.equal(rows.size, 4);
  for (const busy of rows.values()) {
    const expected = (1200 * (timeline.makespan - timeline.bubble)) / timeline.makespan;
    assert.ok(Math.abs(busy - expected) < 1, `${busy} instead of ${expected}`);
  }
  const parts = [...svg.matchAll(/<title>/g)].length;
  const perRank = timeline.ranks.map(({ actions }) =>
    actions.reduce((sum, { action }) => sum + (action.kind === "F&B" ? 2 : 1), 0),
  );
  assert.equal(
    parts,
    perRank.reduce((sum, count) => sum + count),
  );
});
