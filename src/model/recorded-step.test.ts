/** @file Training passes that come again: the same bits whether they are replayed or launched. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Device } from "../device/device.ts";
import { tickingDevice } from "../device/ticking-device.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import { view } from "../tensor/view.ts";
import { Model } from "./model.ts";
import type { Batch, ModelOptions, StepOptions, StepResult } from "./model-types.ts";
import { SPAN_NAMES } from "./parameter-layout.ts";
import { openReferenceDevice, randomBatch, TINY } from "./test-support.ts";

const CONFIG = { ...TINY, numMtpModules: 1, initializerRange: 0.1 };
const STEP: StepOptions = {
  mtpWeight: 0.3,
  balanceWeight: 1e-2,
  zLoss: 1e-3,
  computeGradients: true,
};
const SHAPE = { numSequences: 2, seqLength: 12 };
const OTHER = randomBatch(CONFIG, { numSequences: 3, seqLength: 7, seed: 90 });
const BATCHES = [1, 2, 3, 4].map((seed) => randomBatch(CONFIG, { ...SHAPE, seed }));

/** Counts what is recorded and replayed on a device. */
function counting(device: Device): { device: Device; counts: { made: number; replays: number } } {
  const counts = { made: 0, replays: 0 };
  const record: Device["record"] = (work) => {
    const list = device.record(work);
    counts.made++;
    return {
      numLaunches: list.numLaunches,
      replay: (tick) => {
        counts.replays++;
        list.replay(tick);
      },
      [Symbol.dispose]: () => list[Symbol.dispose](),
    };
  };
  return { device: { ...tickingDevice(device, () => {}), record }, counts };
}

/** Results of all batches and the sum of their gradients; the weights change after each. */
function train(model: Model, batches: readonly Batch[], between: () => void) {
  const results: StepResult[] = [];
  for (const batch of batches) {
    results.push(model.forwardBackward(batch, STEP));
    between();
    for (const name of SPAN_NAMES) {
      const { values, gradients } = model.parameters[name];
      const gradient = view(gradients);
      view(values).forEach((value, index, all) => {
        all[index] = value - 0.01 * gradient[index]!;
      });
    }
    model.parameters.refreshCompute();
  }
  const gradients = SPAN_NAMES.map((name) => view(model.parameters[name].gradients).slice());
  return { results, gradients };
}

for (const [precision, kernels] of [
  ["bf16", "auto"],
  ["f32", "auto"],
  ["f32", "wasm"],
  ["f32", "reference"],
] as const) {
  const title = `replays in ${precision} have the bits of passes that are launched`;
  test(`${title}, kernels: ${kernels}`, async () => {
    await using base = await openCpuDevice({ numThreads: 2, kernels });
    const { device, counts } = counting(base);
    const options: ModelOptions = { precision, seed: 8 };
    const replayed = train(new Model(device, CONFIG, options), BATCHES, () => {});
    assert.deepEqual(counts, { made: 1, replays: 2 });
    // A pass of another shape in between, and no two of a shape follow each other.
    const launched = new Model(device, CONFIG, options);
    const expected = train(launched, BATCHES, () => {
      launched.forwardBackward(OTHER, { ...STEP, computeGradients: false });
    });
    assert.deepEqual(counts, { made: 1, replays: 2 });
    assert.deepEqual(replayed, expected);
  });
}

test("an evaluation in between, over the same memory, changes nothing", async () => {
  await using device = await openCpuDevice({ numThreads: 2 });
  const options: ModelOptions = { precision: "bf16", seed: 8 };
  const alone = train(new Model(device, CONFIG, options), BATCHES, () => {});
  const model = new Model(device, CONFIG, options);
  assert.deepEqual(
    train(model, BATCHES, () => model.evaluate(OTHER)),
    alone,
  );
});

test("other options are recorded anew", async () => {
  await using base = await openReferenceDevice();
  const { device, counts } = counting(base);
  const model = new Model(device, CONFIG, { precision: "f32", seed: 8 });
  const [batch] = BATCHES as [Batch];
  const objective = (zLoss: number): number =>
    model.forwardBackward(batch, { ...STEP, zLoss }).objective;
  const [once, again] = [objective(0), objective(0)];
  assert.equal(again, once);
  assert.equal(objective(0), once);
  assert.notEqual(objective(1), once);
  assert.deepEqual(counts, { made: 1, replays: 1 });
});

test("tokens outside the vocabulary are refused before anything runs", async () => {
  await using device = await openReferenceDevice();
  const model = new Model(device, CONFIG, { precision: "f32", seed: 8 });
  const [batch] = BATCHES as [Batch];
  for (let pass = 0; pass < 3; pass++) {
    const tokens = batch.tokens.with(5, CONFIG.vocabSize);
    assert.throws(() => model.forwardBackward({ ...batch, tokens }, STEP), /tokens of a batch/);
    model.forwardBackward(batch, STEP);
  }
});
