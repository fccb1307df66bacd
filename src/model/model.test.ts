/**
 * @file The whole model: implementations against the reference, evaluation, determinism, and that
 * it learns.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { openCpuDevice } from "../kernels/cpu.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { Model } from "./model.ts";
import type { Batch, ModelOptions, StepOptions, StepResult } from "./model-types.ts";
import { SPAN_NAMES } from "./parameter-layout.ts";
import { openReferenceDevice, randomBatch, TINY } from "./test-support.ts";

const CONFIG: ModelConfig = {
  ...TINY,
  vocabSize: 61,
  hiddenDim: 32,
  numLayers: 3,
  qLoraRank: 16,
  kvLoraRank: 16,
  qkNopeHeadDim: 16,
  qkRopeHeadDim: 8,
  vHeadDim: 16,
  intermediateDim: 48,
  moeIntermediateDim: 16,
  numMtpModules: 1,
  initializerRange: 0.1,
};
const STEP: StepOptions = {
  mtpWeight: 0.3,
  balanceWeight: 1e-3,
  zLoss: 1e-3,
  computeGradients: true,
};
const BATCH = randomBatch(CONFIG, { numSequences: 2, seqLength: 24, seed: 4 });

interface Run {
  readonly result: StepResult;
  readonly gradients: ReadonlyMap<string, Float64Array>;
}

type DeviceOptions = Parameters<typeof openCpuDevice>[0];

/** One step on a fresh device. */
async function runStep(device: DeviceOptions, options: ModelOptions, batch = BATCH): Promise<Run> {
  await using opened = await openCpuDevice(device);
  const model = new Model(opened, CONFIG, options);
  const result = model.forwardBackward(batch, STEP);
  return { result, gradients: gradientsOf(model) };
}

function gradientsOf(model: Model): Map<string, Float64Array> {
  return new Map(
    model.parameters.list.map(({ name, gradient }) => [name, Float64Array.from(view(gradient))]),
  );
}

/** 1 − 2⟨a,b⟩ / (⟨a,a⟩ + ⟨b,b⟩), the largest over the parameters. */
function worstDifference(actual: Run, expected: Run): { name: string; difference: number } {
  let worst = { name: "none", difference: 0 };
  for (const [name, a] of actual.gradients) {
    const b = expected.gradients.get(name)!;
    let [cross, squares] = [0, 0];
    a.forEach((value, index) => {
      cross += value * b[index]!;
      squares += value * value + b[index]! * b[index]!;
    });
    const difference = squares === 0 ? 0 : 1 - (2 * cross) / squares;
    if (difference > worst.difference) worst = { name, difference };
  }
  return worst;
}

/** Everything in f64; values are drawn in f64 and rounded by f32 models, so they agree to f32. */
const oracle = (): Promise<Run> =>
  runStep({ kernels: "reference", numThreads: 1 }, { precision: "f32", floatType: "f64", seed: 8 });

for (const kernels of ["auto", "wasm"] as const) {
  for (const { precision, gradientMax, lossMax } of [
    { precision: "f32", gradientMax: 1e-6, lossMax: 1e-5 },
    { precision: "bf16", gradientMax: 3e-3, lossMax: 2e-2 },
  ] as const) {
    test(`${kernels} kernels in ${precision} agree with float64 references`, async () => {
      const expected = await oracle();
      const actual = await runStep({ kernels, numThreads: 2 }, { precision, seed: 8 });
      const lossError = Math.abs(actual.result.objective - expected.result.objective);
      assert.ok(lossError < lossMax, `objective differs by ${lossError}`);
      const { name, difference } = worstDifference(actual, expected);
      assert.ok(difference < gradientMax, `gradient of ${name} differs by ${difference}`);
    });
  }
}

test("the number of threads changes no bit of loss or gradients", async () => {
  const options = { precision: "bf16", seed: 8 } as const;
  const one = await runStep({ numThreads: 1 }, options);
  const three = await runStep({ numThreads: 3 }, options);
  assert.deepEqual(three.result, one.result);
  for (const [name, gradient] of one.gradients) {
    assert.deepEqual(three.gradients.get(name), gradient, name);
  }
});

test("weight gradients deferred to the end of the step have the same bits", async () => {
  await using device = await openCpuDevice({ numThreads: 1 });
  const model = new Model(device, CONFIG, { precision: "bf16", seed: 8 });
  model.forwardBackward(BATCH, STEP);
  const settled = gradientsOf(model);
  model.parameters.zeroGradients();
  model.weightGrads.deferred = true;
  model.forwardBackward(BATCH, STEP);
  model.weightGrads.assertEmpty();
  for (const [name, gradient] of gradientsOf(model)) {
    assert.deepEqual(gradient, settled.get(name), name);
  }
});

test("evaluation gives the losses whose mean the step reports", async () => {
  await using device = await openCpuDevice({ numThreads: 1 });
  const model = new Model(device, CONFIG, { precision: "f32", seed: 8 });
  const losses = model.evaluate(BATCH);
  const { loss } = model.forwardBackward(BATCH, { ...STEP, computeGradients: false });
  const mean = losses.reduce((sum, value) => sum + value, 0) / losses.length;
  assert.ok(Math.abs(mean - loss) < 1e-6, `${mean} and ${loss}`);
  const rowLength = BATCH.tokens.length / 2;
  const second = { tokens: BATCH.tokens.slice(rowLength), numSequences: 1, seqLength: 24 };
  assert.deepEqual(model.evaluate(second), losses.slice(24));
  assert.equal(model.arenas.saved.liveBytes, 0);
  assert.equal(model.arenas.scratch.liveBytes, 0);
});

test("a later token changes no earlier loss", async () => {
  await using device = await openReferenceDevice();
  const model = new Model(device, TINY, { precision: "f32", seed: 2 });
  const batch = randomBatch(TINY, { numSequences: 1, seqLength: 6, seed: 2 });
  const losses = model.evaluate(batch);
  const changed = batch.tokens.slice();
  changed[4] = (changed[4]! + 1) % TINY.vocabSize;
  const after = model.evaluate({ ...batch, tokens: changed });
  assert.deepEqual(after.slice(0, 3), losses.slice(0, 3));
  assert.notEqual(after[3], losses[3], "position 3 predicts the changed token");
  assert.notEqual(after[5], losses[5], "position 5 reads the changed token");
});

test("an MTP module reads the main model's output after its final norm", async () => {
  await using device = await openReferenceDevice();
  const config = { ...TINY, numMtpModules: 1 };
  const model = new Model(device, config, { precision: "f32", seed: 2 });
  const batch = randomBatch(config, { numSequences: 1, seqLength: 6, seed: 2 });
  const options = { ...STEP, computeGradients: false };
  const [before] = model.forwardBackward(batch, options).mtpLosses;
  // Its own norm undoes a common factor, but not a gain that differs between columns.
  view(model.parameters.get("norm").value)[0] = 3;
  const [after] = model.forwardBackward(batch, options).mtpLosses;
  assert.ok(Math.abs(after! - before!) > 1e-4, `${before} and ${after}`);
});

test("two half batches with half the loss scale add up to the gradient of the whole", async () => {
  await using device = await openReferenceDevice();
  const options = { precision: "f32", floatType: "f64", seed: 8 } as const;
  const whole = new Model(device, CONFIG, options);
  const halves = new Model(device, CONFIG, options);
  // The balance loss is a mean over sequences, so it adds up as well.
  const batch = randomBatch(CONFIG, { numSequences: 2, seqLength: 6, seed: 4 });
  whole.forwardBackward(batch, STEP);
  const rowLength = batch.tokens.length / 2;
  for (const start of [0, rowLength]) {
    const tokens = batch.tokens.slice(start, start + rowLength);
    halves.forwardBackward({ tokens, numSequences: 1, seqLength: 6 }, { ...STEP, lossScale: 0.5 });
  }
  const expected = gradientsOf(whole);
  for (const [name, gradient] of gradientsOf(halves)) {
    gradient.forEach((value, index) => {
      const other = expected.get(name)![index]!;
      assert.ok(Math.abs(value - other) < 1e-12 + 1e-9 * Math.abs(other), `${name}[${index}]`);
    });
  }
});

for (const [name, overrides] of Object.entries({
  "a mixture of experts": {},
  "a dense model with tied embeddings": {
    numRoutedExperts: 0,
    firstDenseLayers: 3,
    qLoraRank: null,
    tieWordEmbeddings: true,
    numMtpModules: 0,
  },
})) {
  test(`thirty steps of plain descent on one batch teach it to ${name}`, async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const config: ModelConfig = { ...CONFIG, ...overrides };
    const model = new Model(device, config, { precision: "bf16", seed: 8 });
    const batch = randomBatch(config, { numSequences: 2, seqLength: 24, seed: 4 });
    const losses: number[] = [];
    for (let step = 0; step < 30; step++) losses.push(descend(model, batch, 0.3));
    const [first, last] = [losses[0]!, losses[29]!];
    assert.ok(Math.abs(first - Math.log(config.vocabSize)) < 0.5, `starts at ${first}`);
    assert.ok(last < 0.6 * first, `from ${first} to ${last}`);
  });
}

function descend(model: Model, batch: Batch, rate: number): number {
  model.parameters.zeroGradients();
  const { loss } = model.forwardBackward(batch, { ...STEP, zLoss: 0 });
  for (const name of SPAN_NAMES) {
    const { values, gradients } = model.parameters[name];
    const gradient = view(gradients);
    view(values).forEach((value, index, all) => {
      all[index] = value - rate * gradient[index]!;
    });
  }
  model.parameters.refreshCompute();
  return loss;
}
