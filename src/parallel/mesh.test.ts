/** @file Ranks and places on a mesh, and whom a rank meets along each axis. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { runOnThreads } from "./communicator/threads/run-on-threads.ts";
import { formatLayout, meshShape, parseLayout, placeOf, rankAt } from "./mesh.ts";

test("every rank has one place and every place one rank", () => {
  const shape = { pp: 3, ep: 4, dp: 2 };
  for (let rank = 0; rank < 24; rank++) assert.equal(rankAt(shape, placeOf(shape, rank)), rank);
  assert.deepEqual(placeOf(shape, 17), { dp: 1, pp: 1, ep: 1 });
  assert.throws(() => rankAt(shape, { pp: 3, ep: 0, dp: 0 }), /pp \(3\) of 3/);
});

test("ranks that do not divide are refused with what would", () => {
  assert.deepEqual(meshShape(16, { pp: 4, ep: 2 }), { pp: 4, ep: 2, dp: 2 });
  assert.throws(() => meshShape(12, { pp: 4, ep: 2 }), /use a multiple of 8/);
});

test("a layout is written by its axes, and what is none is refused with an example", () => {
  assert.deepEqual(parseLayout("pp=2,ep=4,dp=3"), { pp: 2, ep: 4, dp: 3 });
  assert.deepEqual(parseLayout("dp=2, pp=4"), { pp: 4, ep: 1, dp: 2 });
  assert.equal(formatLayout({ pp: 4, ep: 1, dp: 2 }), "pp=4,dp=2");
  assert.equal(formatLayout({ pp: 1, ep: 1, dp: 1 }), "pp=1,ep=1,dp=1");
  for (const text of [
    "",
    "pp",
    "pp=0",
    "pp=2,pp=2",
    "tp=2",
    "pp=2,",
    "pp=two",
    "pp=1e3",
    "pp=-1",
  ]) {
    assert.throws(() => parseLayout(text), /^OperationalError: layout .*such as pp=2,ep=2,dp=2/);
  }
});

test("along an axis a rank meets those that differ from it on that axis alone", async () => {
  const program = new URL("./mesh-ranks.fixture.ts", import.meta.url);
  const input = { pp: 2, ep: 2, dp: 2 };
  const met = (await runOnThreads({ numRanks: 8, program, input })) as Record<string, number[]>[];
  assert.deepEqual(met[0], { pp: [0, 2], ep: [0, 1], dp: [0, 4], replicas: [0, 1, 4, 5] });
  assert.deepEqual(met[7], { pp: [5, 7], ep: [6, 7], dp: [3, 7], replicas: [2, 3, 6, 7] });
});
