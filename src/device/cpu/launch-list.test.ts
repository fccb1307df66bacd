/**
 * @file Recorded launches: every task once a replay, stages in order, failures told, places used
 * again.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Device } from "../device.ts";
import { tickingDevice } from "../ticking-device.ts";
import { startCpuDevice } from "./cpu-device.ts";

const PROGRAM = new URL("./counting-program.fixture.ts", import.meta.url);

function start(numThreads: number): Promise<Device> {
  return startCpuDevice(PROGRAM, { numThreads, kernels: "reference" });
}

/** Tasks of the launches of one recording; several in a row run together. */
const STAGES: readonly (readonly number[])[] = [[1], [1], [7], [1, 1, 3], [40], [1], [2, 1], [5]];

for (const numThreads of [1, 2, 5]) {
  test(`${numThreads} threads run every task of every replay exactly once`, async () => {
    await using device = await start(numThreads);
    const { memory } = device;
    const perThread = memory.reserve(4 * numThreads);
    const counts = STAGES.map((stage) => stage.map(() => memory.reserve(4 * 64)));
    using list = device.record(() => {
      STAGES.forEach((stage, index) => {
        const launch = (tasks: number, at: number): void =>
          device.launch("count/i32", [counts[index]![at]!, perThread], tasks);
        if (stage.length === 1) launch(stage[0]!, 0);
        else device.together(() => stage.forEach(launch));
      });
    });
    assert.equal(list.numLaunches, STAGES.flat().length);
    const replays = 300;
    for (let replay = 0; replay < replays; replay++) list.replay();
    STAGES.forEach((stage, index) => {
      stage.forEach((tasks, at) => {
        const first = counts[index]![at]! / 4;
        const expected = Array.from({ length: 64 }, (_, task) => (task < tasks ? replays + 1 : 0));
        assert.deepEqual([...memory.i32.slice(first, first + 64)], expected);
      });
    });
  });
}

test("a stage begins when the one before is done", async () => {
  await using device = await start(3);
  const { memory } = device;
  const [first, second] = [memory.reserve(4 * 32), memory.reserve(4)];
  using list = device.record(() => {
    for (let step = 0; step < 6; step++) {
      device.launch("add/i32", [first], 32);
      device.launch("sum/i32", [first, 32, second], 1);
    }
  });
  // Each sum is of what six, seven, … additions left, so one that came early is smaller.
  let expected = 0;
  const sumTo = (count: number): number => (32 * count * (count + 1)) / 2;
  for (let replay = 0; replay < 200; replay++) list.replay();
  expected = sumTo(6 * 201);
  assert.equal(memory.i32[second / 4], expected);
});

for (const numThreads of [1, 3]) {
  test(`a long replay on ${numThreads} threads shows on its way that it goes on`, async () => {
    await using device = await start(numThreads);
    const { memory } = device;
    const [added, sum] = [memory.reserve(4 * 8), memory.reserve(4)];
    // What the tasks have added when the ticks come.
    const seen: number[][] = [[], []];
    const ticking = seen.reduce(
      (under, each) => tickingDevice(under, () => void each.push(memory.i32[added / 4]!)),
      device,
    );
    using list = ticking.record(() => {
      for (let step = 0; step < 100; step++) {
        ticking.launch("add/i32", [added], 8);
        ticking.launch("sum/i32", [added, 8, sum], 1);
      }
    });
    for (const each of seen) each.length = 0;
    const before = memory.i32[added / 4]!;
    list.replay();
    // At a tick others may have begun on the launch that comes next.
    const steps = seen[0]!.map((value, index) => value - before - 16 * index);
    assert.equal(steps.length, 7);
    assert.ok(
      steps.every((ahead) => ahead === 0 || ahead === 1),
      `${steps}`,
    );
    assert.equal(seen[1]!.length, 7);
  });
}

test("a failure in a replay reaches the caller, from a worker and from the launcher", async () => {
  {
    await using device = await start(2);
    const flag = device.memory.reserve(4);
    assert.throws(
      () => device.record(() => device.launch("failOnLauncher/i32", [], 3)),
      /launcher/,
    );
    using list = device.record(() => device.launch("failWhenSet/i32", [flag], 8));
    list.replay();
    device.memory.i32[flag / 4] = 1;
    assert.throws(() => list.replay(), /broken when set/);
  }
});

test("a list that took the place of another is run as itself", async () => {
  await using device = await start(2);
  const counts = device.memory.reserve(4 * 64);
  const perThread = device.memory.reserve(8);
  const before = device.memory.numReservations;
  for (let round = 1; round <= 20; round++) {
    using list = device.record(() => device.launch("count/i32", [counts, perThread], round));
    list.replay();
  }
  // The first list reserved its place; all others took it.
  assert.equal(device.memory.numReservations, before + 1);
  const seen = device.memory.i32.slice(counts / 4, counts / 4 + 20);
  assert.deepEqual(
    [...seen],
    Array.from({ length: 20 }, (_, task) => 2 * (20 - task)),
  );
});

test("recordings are not nested", async () => {
  await using device = await start(1);
  assert.throws(() => device.record(() => device.record(() => {})), /one recording at a time/);
  using list = device.record(() => {});
  list.replay();
  assert.throws(() => device.record(() => list.replay()), /not replayed into another/);
});
