/**
 * @file Every schedule at every size: complete, free of deadlock, and as fast and small as its
 * paper says.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../../base/random.ts";
import { type Action, type ActionKind, partsOf } from "../action.ts";
import { fixedCosts, simulate, type Timeline, UNIT_COSTS } from "../simulate.ts";
import { findScheduleFault } from "../validate.ts";
import { SCHEDULE_KINDS, SCHEDULES, type ScheduleRequest } from "./kinds.ts";

const MOST_RANKS = 16;

/** Sizes a kind admits: every number of ranks, micro-batches from the fewest on. */
function* sizesOf(kind: (typeof SCHEDULE_KINDS)[number]): Generator<ScheduleRequest> {
  const { refuse } = SCHEDULES[kind];
  for (let numRanks = 1; numRanks <= MOST_RANKS; numRanks++) {
    const most = kind === "interleaved" ? 4 * numRanks : 2 * numRanks + 9;
    for (let numMicroBatches = 1; numMicroBatches <= most; numMicroBatches++) {
      for (const numStagesPerRank of kind === "interleaved" ? [1, 2, 3] : [1]) {
        const size = { numRanks, numMicroBatches, numStagesPerRank };
        if (refuse(size) === null) yield size;
      }
    }
  }
}

function describeSize(size: ScheduleRequest): string {
  return `${size.numRanks} ranks × ${size.numStagesPerRank}, ${size.numMicroBatches} micro-batches`;
}

for (const kind of SCHEDULE_KINDS) {
  const { make, bubble, activations } = SCHEDULES[kind];

  test(`${kind}: every chunk once, in a possible order, messages in order, at every size`, () => {
    for (const size of sizesOf(kind)) {
      assert.equal(findScheduleFault(make(size)), null, describeSize(size));
    }
  });

  test(`${kind}: makespan, bubble of every rank and live chunks are those of its formula`, () => {
    for (const size of sizesOf(kind)) {
      const { numRanks, numMicroBatches, numStagesPerRank } = size;
      const timeline = simulate(make(size), fixedCosts(UNIT_COSTS));
      const at = describeSize(size);
      const stages = kind === "dualpipev" ? 2 : numStagesPerRank;
      const work = stages * numMicroBatches * (UNIT_COSTS.F + UNIT_COSTS.B);
      assert.ok(timeline.peakActivations <= activations(size), at);
      // With fewer micro-batches than ranks ZB1P has no W to fill its bubble with.
      if (kind === "zb1p" && numMicroBatches < numRanks) continue;
      assert.equal(timeline.makespan, work + bubble(size, UNIT_COSTS), at);
      for (const rank of timeline.ranks) assert.equal(rank.bubble, bubble(size, UNIT_COSTS), at);
    }
  });

  test(`${kind}: the weight gradients of a stage add up in the order of the micro-batches`, () => {
    for (const size of sizesOf(kind)) {
      for (const actions of make(size).ranks) {
        const last = new Map<number, number>();
        for (const { kind: part, stage, microBatch } of actions.flatMap(partsOf)) {
          if (part !== "B" && part !== "W") continue;
          assert.ok(microBatch > (last.get(stage) ?? -1), describeSize(size));
          last.set(stage, microBatch);
        }
      }
    }
  });

  test(`${kind}: the ranks together store the stages as often as it says`, () => {
    for (const size of sizesOf(kind)) {
      const { layout } = make(size);
      const held = layout.directions.flatMap(({ rankOfStage }) => rankOfStage);
      assert.equal(held.length, SCHEDULES[kind].parameterCopies * layout.numStages);
    }
  });

  test(`${kind}: no timing of messages and no pace of ranks stops it or changes its order`, () => {
    const seed = 20_260_301;
    const random = new Random(seed, kind);
    const sizes = [...sizesOf(kind)];
    for (let trial = 0; trial < 60; trial++) {
      const size = sizes[random.below(sizes.length)]!;
      const schedule = make(size);
      const timeline = simulate(schedule, {
        durationOf: () => random.uniform() ** 4 * 10,
        latencyOf: () => random.uniform() ** 4 * 50,
      });
      const at = `seed ${seed}, trial ${trial}: ${describeSize(size)}`;
      for (const [rank, { actions }] of timeline.ranks.entries()) {
        const order = actions.map(({ action }) => action);
        assert.deepEqual(order, schedule.ranks[rank], at);
      }
    }
  });
}

test("DualPipe over 8 ranks with 20 micro-batches runs the published eight steps", () => {
  const { ranks } = SCHEDULES.dualpipe.make(sizeOf(8, 20));
  const totals = [
    { F: 11, I: 7, W: 7, "F&B": 9, B: 4 },
    { F: 10, I: 6, W: 6, "F&B": 10, B: 4 },
    { F: 9, I: 5, W: 5, "F&B": 11, B: 4 },
    { F: 9, I: 4, W: 4, "F&B": 11, B: 5 },
  ];
  for (const [rank, actions] of ranks.entries()) {
    const distance = Math.min(rank, 7 - rank);
    assert.deepEqual(countKinds(actions), totals[distance], `rank ${rank}`);
  }
  const steps = [
    [6, 1, 3, 3, 3, 1, 3, 1],
    [4, 2, 2, 4, 2, 2, 2, 2],
    [2, 3, 1, 5, 1, 3, 1, 3],
    [0, 4, 0, 6, 0, 4, 0, 4],
  ];
  // F, F F, I W F, F&B F&B, B F&B, B B (or I), W I, W: how many actions a step's body has.
  const bodies = [1, 2, 3, 2, 2, 2, 2, 1];
  for (const [distance, counts] of steps.entries()) {
    // The middle ranks' first pair runs as F and B apart: one action more.
    const apart = distance === 3 ? 1 : 0;
    const expected = counts.reduce((sum, count, step) => sum + count * bodies[step]!, apart);
    assert.equal(ranks[distance]!.length, expected);
    assert.deepEqual(stepLetters(counts, distance), ranks[distance]!.map(letterOf));
  }
});

/** The kinds of a rank's actions, written out from the step counts alone. */
function stepLetters(counts: readonly number[], distance: number): string[] {
  const times = (step: number, body: (index: number) => string[]): string[] =>
    Array.from({ length: counts[step]! }, (_, index) => body(index)).flat();
  const half = Math.floor(counts[5]! / 2);
  const isOdd = distance % 2 === 1;
  return [
    ...times(0, () => ["F"]),
    ...times(1, () => ["F", "F"]),
    ...times(2, () => ["I", "W", "F"]),
    ...times(3, (index) => (index === 0 && distance === 3 ? ["F", "B", "F&B"] : ["F&B", "F&B"])),
    ...times(4, () => ["B", "F&B"]),
    ...times(5, (index) => {
      if (index < half) return ["B", "B"];
      return index === half && !isOdd ? ["B", "I"] : ["I", "I"];
    }),
    ...times(6, () => ["W", "I"]),
    ...times(7, () => ["W"]),
  ];
}

function letterOf({ kind }: Action): ActionKind {
  return kind;
}

test("DualPipe takes what was worked out for it at several sizes and costs", () => {
  const at = (numRanks: number, numMicroBatches: number): Timeline =>
    simulate(SCHEDULES.dualpipe.make(sizeOf(numRanks, numMicroBatches)), fixedCosts(UNIT_COSTS));
  assert.deepEqual([at(4, 8).makespan, at(4, 8).bubble], [26, 2]);
  assert.deepEqual([at(8, 20).makespan, at(8, 20).bubble], [66, 6]);
  assert.deepEqual([at(16, 120).makespan, at(16, 120).bubble], [374, 14]);
  assert.equal(at(8, 20).peakActivations, 9);
  const costs = { F: 10, B: 20, I: 12, W: 8, "F&B": 25 };
  const real = simulate(SCHEDULES.dualpipe.make(sizeOf(8, 20)), fixedCosts(costs));
  assert.equal(real.makespan, 602);
  const bubbles = real.ranks.map(({ bubble }) => bubble);
  assert.deepEqual(bubbles, [47, 52, 57, 57, 57, 57, 52, 47]);
  assert.equal(SCHEDULES.dualpipe.bubble(sizeOf(8, 20), costs), 63);
});

function sizeOf(numRanks: number, numMicroBatches: number): ScheduleRequest {
  return { numRanks, numMicroBatches, numStagesPerRank: 1 };
}

function countKinds(actions: readonly Action[]): Partial<Record<ActionKind, number>> {
  const counts: Partial<Record<ActionKind, number>> = {};
  for (const { kind } of actions) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}
