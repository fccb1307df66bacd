/**
 * @file The trainer on the real model: learning, balance, exact repetition, and steps that go
 * wrong.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { smallSettings } from "../../test/fixtures/small-run.ts";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { view } from "../tensor/view.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { BatchLoader } from "./data/batches.ts";
import type { TokenSource } from "./data/token-source.ts";
import type { TrainingSettings } from "./settings.ts";
import { Trainer } from "./trainer.ts";
import { validate } from "./validation.ts";

let device: Device;

before(async () => {
  device = await openCpuDevice({ numThreads: 1 });
});
after(() => device[Symbol.asyncDispose]());

const tokenizer = new Tokenizer(
  learnedVocabulary({ left: new Int32Array(0), right: new Int32Array(0) }),
);

/** Documents of a small grammar, so that there is something to learn. */
function makeSource(seed: number): TokenSource {
  const random = new Random(seed, "documents");
  const words = ["let ", "x", " = ", "f(", ")", ";\n", "1", "+"];
  const documents = Array.from({ length: 12 }, () =>
    tokenizer.encode(Array.from({ length: 60 }, () => words[random.below(8)]!).join("")),
  );
  return {
    numDocuments: documents.length,
    documentTokens: (document) => documents[document]!.length,
    read: (document, start, count) => documents[document]!.slice(start, start + count),
  };
}

/** The whole model of each trainer. */
const models = new WeakMap<Trainer, Model>();

async function makeTrainer(settings: TrainingSettings): Promise<Trainer> {
  const { data, model: config, seed } = settings;
  const model = new Model(device, config, { precision: settings.recipe, seed });
  const loader = new BatchLoader(makeSource(1), tokenizer, {
    seqLength: data.sequenceLength,
    lookahead: 1 + config.numMtpModules,
    spanTokensMax: data.spanTokensMax,
    fimRate: data.fimRate,
    fimTokensMax: data.fimTokensMax,
    seed,
  });
  const trainer = await Trainer.start({ device, model, loader, settings });
  models.set(trainer, model);
  trainer.plan = { fixedAtStep: 0, totalSteps: 1000, totalTokens: 64_000 };
  return trainer;
}

test("the loss falls with AdamW and with Muon, and so do bits per byte of other text", async () => {
  for (const name of ["adamw", "muon"]) {
    await using trainer = await makeTrainer(smallSettings(`optimizer.name=${name}`));
    const losses = Array.from({ length: 40 }, () => trainer.step().loss);
    const mean = (part: readonly number[]): number => part.reduce((sum, x) => sum + x, 0) / 5;
    const [first, last] = [mean(losses.slice(0, 5)), mean(losses.slice(-5))];
    assert.ok(last < 0.75 * first, `${name}: from ${first} to ${last}`);
    const options = { sequenceLength: 16, microBatch: 4, sequencesMax: 12 };
    const result = validate(models.get(trainer)!, makeSource(2), tokenizer, options);
    assert.ok(result !== undefined && result.bitsPerByte < 6, `${name}: ${result?.bitsPerByte}`);
  }
});

test("trainers with equal seeds take equal steps, and another seed takes others", async () => {
  const series = async (seed: number): Promise<string> => {
    await using trainer = await makeTrainer(smallSettings(`seed=${seed}`));
    return JSON.stringify(Array.from({ length: 4 }, () => trainer.step()));
  };
  const first = await series(1);
  assert.equal(await series(1), first);
  assert.notEqual(await series(2), first);
});

test("micro-batches add up to the gradient of the whole batch", async () => {
  await using whole = await makeTrainer(smallSettings("batch.microBatch=4", "data.fimRate=0"));
  await using parts = await makeTrainer(smallSettings("batch.microBatch=1", "data.fimRate=0"));
  const [one, four] = [whole.step(), parts.step()];
  assert.ok(Math.abs(one.loss - four.loss) < 1e-5, `${one.loss} and ${four.loss}`);
  assert.ok(Math.abs(one.gradNorm / four.gradNorm - 1) < 1e-3, `${one.gradNorm}, ${four.gradNorm}`);
  assert.deepEqual(one.expertLoad, four.expertLoad);
});

test("moving the routing biases lowers MaxVio against leaving them", async () => {
  const violation = async (speed: number): Promise<number> => {
    const settings = smallSettings(
      `biasSpeed.first=${speed}`,
      "loss.balanceWeight=0",
      "model.numRoutedExperts=8",
      "batch.sequences=8",
      "batch.rampFrom=8",
    );
    await using trainer = await makeTrainer(settings);
    for (let step = 0; step < 59; step++) trainer.step();
    return Math.max(...trainer.step().recentMaxVio);
  };
  const [balanced, free] = [await violation(0.02), await violation(0)];
  assert.ok(balanced < 0.7 * free, `MaxVio ${balanced} with bias updates, ${free} without`);
});

test("a step with a NaN names its tensor and layer, and changes no parameter", async () => {
  await using trainer = await makeTrainer(smallSettings());
  trainer.step();
  const { parameters } = trainer.model;
  const poisoned = parameters.get("layers.1.attention.output");
  view(poisoned.value)[7] = Number.NaN;
  parameters.refreshCompute();
  const before = view(parameters.decayed.values).slice();
  assert.throws(
    () => trainer.step(),
    (error) =>
      error instanceof OperationalError &&
      error.code === "training.nonfinite" &&
      error.details["tensor"] === "layers.1.attention.output" &&
      error.message.includes("step 1") &&
      error.message.includes("layer 1") &&
      error.message.includes("position 0 of sequence 0"),
  );
  assert.deepEqual(view(parameters.decayed.values), before);
  assert.equal(trainer.position.step, 1);
});

/** Makes every value as large as a float can be, and keeps its sign. */
const enlarge = (trainer: Trainer, name: string): void => {
  const { parameters } = trainer.model;
  const values = view(parameters.get(name).value);
  for (let index = 0; index < values.length; index++) {
    values[index] = 3e38 * Math.sign(values[index]!);
  }
  parameters.refreshCompute();
};

const OVERFLOWS: readonly (readonly [string, string, string])[] = [
  ["layers.0.feedForward.gateUp", "layers.0.feedForward", "layer 0"],
  ["layers.1.attention.keyValueUp", "layers.1.attention", "layer 1"],
  ["layers.1.moe.experts.gateUp", "layers.1.moe", "layer 1"],
  ["norm", "norm", ""],
  ["mtp.0.block.moe.experts.gateUp", "mtp.0.block.moe", "MTP module 0"],
  ["mtp.0.outputNorm", "mtp.0.outputNorm", "MTP module 0"],
  ["head", "head", ""],
];

for (const [name, tensor, layer] of OVERFLOWS) {
  test(`finite weights of ${name} that overflow are blamed on ${tensor}`, async () => {
    await using trainer = await makeTrainer(smallSettings());
    trainer.step();
    enlarge(trainer, name);
    assert.throws(
      () => trainer.step(),
      (error) => {
        assert.ok(error instanceof OperationalError, String(error));
        const { step, tensor: blamed, layer: where } = error.details;
        assert.deepEqual({ step, blamed, where }, { step: 1, blamed: tensor, where: layer });
        assert.ok(error.message.includes("the loss"), error.message);
        return error.code === "training.nonfinite";
      },
    );
  });
}

test("gradients that overflow are caught by their norm", async () => {
  await using trainer = await makeTrainer(smallSettings());
  view(trainer.model.parameters.get("norm").value).fill(1e30);
  trainer.model.parameters.refreshCompute();
  assert.throws(
    () => trainer.step(),
    (error) => error instanceof OperationalError && error.code === "training.nonfinite",
  );
});

test("a loss far above its trend is a spike, and the longest gradient is named", async () => {
  await using trainer = await makeTrainer(smallSettings("health.spikeDeviations=8"));
  for (let step = 0; step < 60; step++) assert.equal(trainer.step().isSpike, false, `step ${step}`);
  const { parameters } = trainer.model;
  const head = view(parameters.get("head").value);
  for (let index = 0; index < head.length; index++) head[index] = -20 * head[index]!;
  parameters.refreshCompute();
  const outcome = trainer.step();
  assert.equal(outcome.isSpike, true, `loss ${outcome.loss}`);
  assert.notEqual(trainer.longestGradient.tensor, "");
});
