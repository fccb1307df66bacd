/** @file Launches timed by kernel, those of a recording too, while they are measured. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { startCpuDevice } from "./cpu/cpu-device.ts";
import { ProfilingDevice } from "./profiling-device.ts";

const PROGRAM = new URL("./cpu/counting-program.fixture.ts", import.meta.url);

test("a replay that is measured runs its launches one by one, with the same effect", async () => {
  const device = new ProfilingDevice(
    await startCpuDevice(PROGRAM, { numThreads: 2, kernels: "reference" }),
  );
  await using _device = device;
  const [counts, perThread] = [device.memory.reserve(4 * 8), device.memory.reserve(8)];
  const sum = device.memory.reserve(4);
  using list = device.record(() => {
    device.launch("count/i32", [counts, perThread], 8);
    device.launch("sum/i32", [counts, 8, sum], 1);
  });
  const state = (): number[] => [...device.memory.i32.slice(counts / 4, counts / 4 + 8)];
  list.replay();
  assert.deepEqual(state(), new Array(8).fill(2));
  const seconds = device.measure(() => list.replay());
  assert.deepEqual(state(), new Array(8).fill(3));
  assert.deepEqual([...seconds.keys()], ["count/i32", "sum/i32"]);
  assert.equal(device.memory.i32[sum / 4], 8 + 16 + 24);
  assert.equal(device.measure(() => {}).size, 0);
});
