/**
 * @file Launches over threads: every task once, failures told, memory that grows under running
 * workers.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Device } from "../device.ts";
import { MAX_SLOTS } from "../device.ts";
import { cpuOptionsFromEnvironment, startCpuDevice } from "./cpu-device.ts";

const PROGRAM = new URL("./counting-program.fixture.ts", import.meta.url);

function start(numThreads: number): Promise<Device> {
  return startCpuDevice(PROGRAM, { numThreads, kernels: "reference" });
}

for (const numThreads of [1, 2, 5]) {
  test(`${numThreads} threads run every task of every launch exactly once`, async () => {
    await using device = await start(numThreads);
    const perThread = device.memory.reserve(4 * numThreads);
    let total = 0;
    for (let launch = 0; launch < 400; launch++) {
      const numTasks = (launch * 7) % 50;
      const counts = device.memory.reserve(4 * 50);
      device.launch("count/i32", [counts, perThread], numTasks);
      const seen = device.memory.i32.slice(counts / 4, counts / 4 + 50);
      assert.deepEqual(
        Array.from(seen),
        Array.from({ length: 50 }, (_, task) => (task < numTasks ? 1 : 0)),
      );
      total += numTasks;
    }
    const shares = device.memory.i32.slice(perThread / 4, perThread / 4 + numThreads);
    assert.equal(
      shares.reduce((sum, share) => sum + share, 0),
      total,
    );
  });
}

test("memory grows between launches, and workers see what lies in the new part", async () => {
  await using device = await start(3);
  const perThread = device.memory.reserve(12);
  for (let round = 0; round < 4; round++) {
    const counts = device.memory.reserve(40 * 2 ** 20);
    const last = counts + 40 * 2 ** 20 - 4 * 100;
    device.launch("count/i32", [last, perThread], 100);
    const seen = device.memory.i32.subarray(last / 4, last / 4 + 100);
    assert.ok(seen.every((value) => value === 1));
  }
});

test("a failure on a worker thread reaches the caller with its message", async () => {
  await using device = await start(2);
  const flag = device.memory.reserve(4);
  assert.throws(
    () => device.launch("failOnWorkers/i32", [flag], 2),
    /failed on a worker thread: .*broken on purpose/s,
  );
});

test("a failure on the launching thread leaves the device usable", async () => {
  await using device = await start(3);
  const flag = device.memory.reserve(4);
  assert.throws(() => device.launch("failOnLauncher/i32", [flag], 50), /broken on the launcher/);
  const counts = device.memory.reserve(4 * 20);
  device.launch("count/i32", [counts, device.memory.reserve(12)], 20);
  assert.ok(device.memory.i32.subarray(counts / 4, counts / 4 + 20).every((value) => value === 1));
});

test("unknown kernels and too many slots are refused", async () => {
  await using device = await start(1);
  assert.throws(() => device.launch("none/f32", [], 1), /kernel none\/f32 is missing/);
  const slots = Array.from({ length: MAX_SLOTS + 1 }, () => 0);
  assert.throws(() => device.launch("count/i32", slots, 1), /at most 64/);
});

test("the address space ends at 4 GiB with an error that says so", async () => {
  await using device = await start(1);
  assert.throws(() => device.memory.reserve(2 ** 32), /ends at 4 GiB.*use a smaller model/s);
});

test("options from the environment are checked", () => {
  assert.deepEqual(cpuOptionsFromEnvironment({}), {});
  assert.deepEqual(cpuOptionsFromEnvironment({ HADAL_KERNELS: "wasm", HADAL_THREADS: "3" }), {
    kernels: "wasm",
    numThreads: 3,
  });
  assert.throws(() => cpuOptionsFromEnvironment({ HADAL_KERNELS: "fast" }), /must be one of auto/);
  assert.throws(() => cpuOptionsFromEnvironment({ HADAL_THREADS: "0" }), /from 1 to 64/);
});
