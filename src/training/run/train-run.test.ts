/** @file Whole runs in real folders: what they write, how they resume, how they end. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { writeSmallCorpus } from "../../../test/fixtures/small-corpus.ts";
import { smallSettings } from "../../../test/fixtures/small-run.ts";
import { OperationalError } from "../../base/errors.ts";
import { openCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
import type { TensorReader } from "../../checkpoint/tensors.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { view } from "../../tensor/view.ts";
import type { RunPlan } from "../budget.ts";
import type { StepRecord } from "../metrics/record.ts";
import { resolveSettings } from "../settings.ts";
import { loadCheckpoint } from "./checkpoint.ts";
import { listCheckpoints, readRunConfig } from "./run-folder.ts";
import { type TrainRunOptions, trainRun } from "./train-run.ts";

let device: Device;
let base = "";
let run = "";

before(async () => {
  device = await openCpuDevice({ numThreads: 1 });
});
after(() => device[Symbol.asyncDispose]());
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-train-"));
  run = join(base, "run");
  writeSmallCorpus(join(base, "corpus"));
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

const settings = (...assignments: string[]) =>
  smallSettings(`data.paths=["${join(base, "corpus")}"]`, ...assignments);

const train = (options: Partial<TrainRunOptions> = {}) =>
  trainRun({ device, out: run, settings: settings(), resume: false, ...options });

const readMetrics = (folder: string): StepRecord[] =>
  readFileSync(join(folder, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as StepRecord);

const series = (folder: string): string[] =>
  readMetrics(folder).map(({ step, loss, gradNorm, mtpLosses }) =>
    JSON.stringify({ step, loss, gradNorm, mtpLosses }),
  );

const failsWith = (code: string) => (error: unknown) =>
  error instanceof OperationalError && error.code === code;

test("a run leaves config, metrics, events, summary and its last checkpoints", async () => {
  const summary = await train();
  assert.equal(summary.steps, 12);
  assert.ok(summary.validation !== undefined && summary.validation.bitsPerByte > 0);
  assert.ok(summary.averageValidation !== undefined);
  const records = readMetrics(run);
  assert.deepEqual(
    records.map(({ step }) => step),
    Array.from({ length: 12 }, (_, step) => step),
  );
  assert.equal(records[11]?.tokens, 12 * 4 * 16);
  assert.ok(records[4]?.validationBitsPerByte !== undefined, "validated after 5 steps");
  assert.equal(records[0]?.maxVio.length, 2, "one MoE layer and one MTP module");
  assert.deepEqual(
    listCheckpoints(run).map(({ step }) => step),
    [8, 12],
  );
  assert.ok(readdirSync(run).some((name) => name.startsWith("events.out.tfevents.")));
  assert.ok(existsSync(join(run, "summary.json")));
  assert.equal(existsSync(join(run, "lock.json")), false);
});

test("a text that is missing or empty is refused before there is a folder", async () => {
  const missing = settings(`data.paths=["${join(base, "corpsu")}"]`);
  await assert.rejects(train({ settings: missing }), failsWith("data.missing"));
  const empty = join(base, "empty.txt");
  writeFileSync(empty, "");
  const ofEmpty = settings(`data.paths=["${empty}"]`);
  await assert.rejects(train({ settings: ofEmpty }), failsWith("data.empty"));
  assert.equal(existsSync(run), false);
});

test("its config.json repeats the run to the bit in another folder", async () => {
  await train();
  const changes = { value: readRunConfig(run), origin: "config.json" };
  const again = join(base, "again");
  await train({ out: again, settings: resolveSettings({ preset: "base", changes }) });
  assert.deepEqual(series(again), series(run));
});

test("an interrupted run resumes to the losses of an uninterrupted one", async () => {
  const whole = join(base, "whole");
  await train({ out: whole });
  const controller = new AbortController();
  const observer = {
    onStep: ({ step }: StepRecord): void => {
      if (step === 5) controller.abort();
    },
  };
  const first = await train({ observer, signal: controller.signal });
  assert.equal(first.wasInterrupted, true);
  assert.equal(first.steps, 6);
  assert.deepEqual(
    listCheckpoints(run).map(({ step }) => step),
    [4, 6],
  );
  const second = await train({ resume: true });
  assert.equal(second.steps, 12);
  assert.deepEqual(series(run), series(whole));
  assert.ok(second.seconds > first.seconds);
});

test("Muon, a batch ramp and the average resume to the bit too", async () => {
  const special = [
    "optimizer.name=muon",
    "batch.rampFrom=2",
    "batch.rampTokens=400",
    "average.decay=0.9",
    "learningRate.shape=v3",
  ];
  const whole = await train({ out: join(base, "whole"), settings: settings(...special) });
  const controller = new AbortController();
  const observer = {
    onStep: ({ step }: StepRecord): void => {
      if (step === 6) controller.abort();
    },
  };
  await train({ settings: settings(...special), signal: controller.signal, observer });
  const last = await train({ settings: settings(...special), resume: true });
  assert.deepEqual(series(run), series(join(base, "whole")));
  assert.equal(last.averageValidation?.bitsPerByte, whole.averageValidation?.bitsPerByte);
});

test("a run under the fp8 recipe, with moments in bf16, resumes to the same bits", async () => {
  // A run's memory is never given back: these have a device of their own.
  await using own = await openCpuDevice({ numThreads: 1 });
  for (const rounding of ["recipe.stochasticRounding=false", "recipe.stochasticRounding=true"]) {
    const special = ["recipe=fp8", rounding, "optimizer.name=adamw"];
    const [broken, whole] = ["broken", "whole"].map((name) => join(base, `${name} ${rounding}`));
    await train({ device: own, out: whole!, settings: settings(...special) });
    const controller = new AbortController();
    const observer = {
      onStep: ({ step }: StepRecord): void => {
        if (step === 6) controller.abort();
      },
    };
    const options = { device: own, out: broken!, settings: settings(...special) };
    await train({ ...options, signal: controller.signal, observer });
    await train({ ...options, resume: true });
    assert.deepEqual(series(broken!), series(whole!));
    assert.equal(readMetrics(whole!).length, 12);
  }
});

test("a run that ended is over, and goes on with a larger budget", async () => {
  const first = await train();
  const warnings: string[] = [];
  const observer = { onWarning: (message: string) => void warnings.push(message) };
  const same = await train({ resume: true, observer });
  assert.deepEqual(warnings, [
    "the run is complete: its budget of 12 steps is used up; resume with a larger one",
  ]);
  assert.deepEqual(
    { ...same, seconds: 0 },
    { ...first, seconds: 0, tokensPerSecond: 0, averageWaits: 0, averageWaitedSeconds: 0 },
  );
  assert.equal(readMetrics(run).length, 12);
  const longer = await train({ resume: true, settings: settings("budget.steps=15"), observer });
  assert.equal(longer.steps, 15);
  assert.equal(readMetrics(run).length, 15);
  assert.equal(warnings.length, 1);
});

test("a budget smaller than what is spent takes no step, and is warned of", async () => {
  const { steps } = await train({ settings: settings("budget.steps=3") });
  const spent = ["budget.steps=1", "budget.tokens=100", "budget.minutes=0.001"];
  for (const [index, budget] of spent.entries()) {
    const warnings: string[] = [];
    const observer = { onWarning: (message: string) => void warnings.push(message) };
    const others = settings("budget.steps=null", budget);
    // The clock of a fast machine could not have used up even the smallest budget in minutes.
    if (index === 2) pretendSeconds(listCheckpoints(run).at(-1)!.path, 60);
    const summary = await train({ resume: true, settings: others, observer });
    assert.equal(summary.steps, steps, budget);
    assert.equal(warnings.length, 1, budget);
    const said = ["1 step ", "100 tokens ", "0.001 minutes "][index]!;
    assert.ok(warnings[0]!.includes(said), warnings[0]);
  }
});

function pretendSeconds(checkpoint: string, seconds: number): void {
  const path = join(checkpoint, "training-state", "state.json");
  const state = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  writeFileSync(path, JSON.stringify({ ...state, seconds }));
}

test("a run is not resumed with another model, seed or data", async () => {
  await train({ settings: settings("budget.steps=2") });
  for (const change of ["model.numLayers=3", "seed=9", "data.fimRate=0.5"]) {
    await assert.rejects(
      train({ resume: true, settings: settings(change) }),
      failsWith("run.settings"),
    );
  }
});

test("a run in minutes measures its speed once and keeps to the steps it then fixed", async () => {
  const budget = ["budget.steps=null", "budget.minutes=0.02"];
  const plans: number[] = [];
  const observer = {
    onPlan: ({ totalSteps }: { totalSteps: number }) => void plans.push(totalSteps),
  };
  const summary = await train({ settings: settings(...budget), observer });
  assert.equal(plans.length, 1);
  assert.equal(summary.steps, plans[0]);
  assert.ok(summary.steps >= 6, `${summary.steps} steps`);
  const resumed = await train({ settings: settings(...budget), resume: true, observer });
  assert.deepEqual(plans, [summary.steps, summary.steps]);
  assert.equal(resumed.steps, summary.steps);
});

test("more minutes are planned before the first step, so that the schedule goes on", async () => {
  const minutes = (budget: number) => settings("budget.steps=null", `budget.minutes=${budget}`);
  const first = await train({ settings: minutes(0.01) });
  const said: string[] = [];
  const observer = {
    onPlan: ({ fixedAtStep }: RunPlan) => void said.push(`plan at ${fixedAtStep}`),
    onStep: ({ step }: StepRecord) => void said.push(`step ${step}`),
  };
  await train({ settings: minutes(0.2), resume: true, observer });
  assert.deepEqual(said.slice(0, 2), [`plan at ${first.steps}`, `step ${first.steps}`]);
});

test("a damaged newest checkpoint is told with the one to go back to", async () => {
  await train();
  const [older, newest] = listCheckpoints(run);
  assert.ok(older !== undefined && newest !== undefined);
  for (const name of ["training-state/state.json", "tokenizer.json"]) {
    writeFileSync(join(newest.path, name), "torn");
    await assert.rejects(train({ resume: true }), (error: unknown) => {
      assert.ok(error instanceof OperationalError);
      return error.message.includes(newest.path) && error.message.includes(older.path);
    });
  }
  rmSync(newest.path, { recursive: true });
  assert.equal((await train({ resume: true })).steps, 12);
});

test("weights damaged beside a whole training state are told of, and made anew", async () => {
  // A run's memory is never given back: these have a device of their own.
  await using own = await openCpuDevice({ numThreads: 1 });
  await train({ device: own });
  const { path } = listCheckpoints(run).at(-1)!;
  const weights = join(path, "model.safetensors");
  const content = readFileSync(weights);
  const damages: [RegExp, () => void][] = [
    [/model\.safetensors has \d+ bytes/, () => writeFileSync(weights, content.subarray(0, -99))],
    [/neither model\.safetensors nor/, () => rmSync(weights)],
    [/config\.json cannot be read/, () => rmSync(join(path, "config.json"))],
  ];
  for (const [problem, damage] of damages) {
    damage();
    const warnings: string[] = [];
    const observer = { onWarning: (message: string) => void warnings.push(message) };
    await train({ device: own, resume: true, observer });
    assert.match(warnings[0]!, problem);
    assert.ok(warnings[0]!.startsWith(`the weights of ${path} are damaged (`));
    assert.match(warnings[0]!, /the run goes on from the training state .* writes this checkpoint/);
    assert.deepEqual(readFileSync(weights), content);
    await train({ device: own, resume: true, observer });
    assert.equal(warnings.length, 3, "then only of the budget, which is spent");
  }
});

test("a step that is not finite ends the run, which resumes with gentler settings", async () => {
  const wild = settings(
    "learningRate.peak=1e30",
    "optimizer.clipNorm=0",
    "learningRate.warmupSteps=0",
  );
  await assert.rejects(train({ settings: wild }), failsWith("training.nonfinite"));
  const last = listCheckpoints(run).at(-1);
  assert.ok(last !== undefined, "a checkpoint from before");
  const summary = await train({ resume: true, settings: settings() });
  assert.equal(summary.steps, 12);
  assert.ok(readMetrics(run).every(({ loss }) => Number.isFinite(loss)));
});

test("a checkpoint loads as a model in bf16, f32 and fp8, with its copies", async () => {
  const stored: Readonly<Record<string, string>> = {
    bf16: "BF16",
    f32: "F32",
    fp8: "F8_E4M3",
    "fp8-ue8m0": "F8_E4M3",
  };
  for (const dtype of Object.keys(stored)) {
    const out = join(base, dtype);
    const summary = await train({ out, settings: settings(`checkpoint.dtype=${dtype}`) });
    {
      using tensors = openCheckpointTensors(summary.checkpoint);
      const bias = tensors.tensors.get("model.layers.1.mlp.gate.e_score_correction_bias");
      assert.equal(bias?.dtype, "F32");
      const expert = tensors.tensors.get("model.layers.1.mlp.experts.3.down_proj.weight");
      assert.equal(expert?.dtype, stored[dtype]);
      if (dtype === "fp8-ue8m0") assertPowersOfTwo(tensors, `${expert!.name}_scale_inv`);
    }
    const loaded = loadCheckpoint(device, summary.checkpoint, { precision: "f32" });
    const exact = loadCheckpoint(device, summary.checkpoint, { precision: "f32", average: true });
    assert.notDeepEqual(
      view(loaded.model.parameters.decayed.values),
      view(exact.model.parameters.decayed.values),
      "the average is another model",
    );
    assert.ok(loaded.tokenizer.vocabSize > 256);
  }
});

function assertPowersOfTwo(tensors: TensorReader, name: string): void {
  const scales = new Float32Array(tensors.read(name).buffer);
  assert.ok(scales.length > 0 && scales.every((scale) => Number.isInteger(Math.log2(scale))));
}

test("damage to a checkpoint is refused with the file's name", async () => {
  const { checkpoint } = await train({ settings: settings("budget.steps=1") });
  const state = join(checkpoint, "training-state", "state.json");
  writeFileSync(state, readFileSync(state, "utf8").slice(0, 40));
  const longer = settings("budget.steps=2");
  await assert.rejects(
    train({ resume: true, settings: longer }),
    (error) => failsWith("checkpoint.trainingState")(error) && String(error).includes(state),
  );
  rmSync(join(checkpoint, "tokenizer.json"));
  await assert.rejects(train({ resume: true, settings: longer }), failsWith("checkpoint.missing"));
});

type Json = Record<string, unknown>;

const PLAN_OF_TWO = { fixedAtStep: 0, totalSteps: 2, totalTokens: 128 };

const DAMAGED_STATES: readonly (readonly [string, string, (state: Json) => unknown])[] = [
  ["nothing but its version", "trainer", () => ({ formatVersion: 1 })],
  ["null", "the content", () => null],
  ["another version", "formatVersion", (state) => ({ ...state, formatVersion: 2 })],
  ["a step in words", "trainer.step", (state) => withTrainer(state, { step: "1" })],
  ["half a step", "trainer.step", (state) => withTrainer(state, { step: 0.5 })],
  [
    "a mean that was NaN",
    "trainer.trend.mean",
    (state) => withTrainer(state, { trend: { count: 1, mean: Number.NaN, variance: 0 } }),
  ],
  ["no loader", "trainer.loader", (state) => withTrainer(state, { loader: undefined })],
  [
    "loads in words",
    "trainer.recentLoads",
    (state) => withTrainer(state, { recentLoads: [["1"]] }),
  ],
  [
    "loads of another model",
    "trainer.recentLoads",
    (state) => withTrainer(state, { recentLoads: [[1, 2]] }),
  ],
  ["half a plan", "plan", (state) => ({ ...state, plan: { totalSteps: 3 } })],
  ["no seconds", "seconds", ({ seconds: _, ...state }) => state],
  ["a field from elsewhere", "speed", (state) => ({ ...state, speed: 3 })],
];

/** Of one MoE layer and an MTP module, four experts each, over two ranks. */
const PLACES = [[0], [1], [2], [3]];
const EXPERTS = { numRanks: 2, loads: [[], [[1, 2, 3, 4]]], places: [PLACES, PLACES] };
const DAMAGED_EXPERTS: readonly (readonly [string, unknown])[] = [
  ["the content", null],
  ["numRanks", { ...EXPERTS, numRanks: 0 }],
  ["2 layers of 4 experts", { ...EXPERTS, loads: [[]] }],
  ["2 layers of 4 experts", { ...EXPERTS, loads: [[], [[1, 2, 3]]] }],
  ["2 layers of 4 experts", { ...EXPERTS, places: [PLACES, [[0], [1], [2, 3], []]] }],
  ["every place must hold one", { ...EXPERTS, places: [PLACES, [[0], [1], [2], [2]]] }],
  ["every place must hold one", { ...EXPERTS, places: [PLACES, [[0], [1], [2], [3, 4]]] }],
];

const withTrainer = (state: Json, changes: Json): Json => ({
  ...state,
  trainer: { ...(state["trainer"] as Json), ...changes },
});

const DAMAGED_PLANS: readonly (readonly [string, unknown])[] = [
  ["budget", {}],
  ["the content", []],
  ["plan", { budget: { steps: 2 }, plan: { fixedAtStep: 0, totalSteps: null, totalTokens: 1 } }],
  ["budget", { budget: { steps: 1, tokens: 2 }, plan: PLAN_OF_TWO }],
  ["budget", { budget: { minutes: null }, plan: PLAN_OF_TWO }],
];

test("a training state or a plan with other fields is refused by file and field", async () => {
  const { checkpoint } = await train({ settings: settings("budget.steps=1") });
  const resumed = () => train({ resume: true, settings: settings("budget.steps=2") });
  const refuses = (code: string, path: string, field: string) => (error: unknown) =>
    failsWith(code)(error) && String(error).includes(path) && String(error).includes(field);
  const path = join(checkpoint, "training-state", "state.json");
  const whole = readFileSync(path, "utf8");
  for (const [what, field, damage] of DAMAGED_STATES) {
    writeFileSync(path, JSON.stringify(damage(JSON.parse(whole) as Json)));
    await assert.rejects(resumed(), refuses("checkpoint.trainingState", path, field), what);
  }
  writeFileSync(path, whole);
  const experts = join(checkpoint, "training-state", "experts.json");
  for (const [field, content] of DAMAGED_EXPERTS) {
    writeFileSync(experts, JSON.stringify(content));
    const what = JSON.stringify(content);
    await assert.rejects(resumed(), refuses("checkpoint.trainingState", experts, field), what);
  }
  writeFileSync(experts, JSON.stringify(EXPERTS));
  const plan = join(run, "plan.json");
  for (const [field, content] of DAMAGED_PLANS) {
    writeFileSync(plan, JSON.stringify(content));
    const what = JSON.stringify(content);
    await assert.rejects(resumed(), refuses("run.plan", plan, field), what);
  }
  writeFileSync(plan, '{"bud');
  await assert.rejects(resumed(), refuses("run.plan", plan, "JSON"));
  rmSync(plan);
  assert.equal((await resumed()).steps, 2);
});

test("samples are noted with the step they follow, and dropped with it", async () => {
  const sampled = ["samples.everySteps=5", 'samples.prompts=["let "]'];
  const writeSamples: TrainRunOptions["writeSamples"] = async ({ step, prompts }) =>
    prompts.map((prompt) => ({ prompt, text: `after ${step}` }));
  await train({ settings: settings(...sampled), writeSamples });
  const lines = readFileSync(join(run, "samples.jsonl"), "utf8").trimEnd().split("\n");
  assert.deepEqual(
    lines.map((line) => (JSON.parse(line) as { step: number; text: string }).text),
    ["after 5", "after 10", "after 12"],
  );
});
