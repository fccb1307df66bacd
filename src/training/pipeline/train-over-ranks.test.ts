/**
 * @file A run over ranks is the run of one process: the same losses, norms and checkpoints, exact
 * resuming on the same layout and nearly so on another.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { writeSmallCorpus } from "../../../test/fixtures/small-corpus.ts";
import { smallSettings } from "../../../test/fixtures/small-run.ts";
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Model } from "../../model/model.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { numRanksOf, parseLayout } from "../../parallel/mesh.ts";
import { makeSchedule, type ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { parseTrace } from "../../parallel/pipeline/trace.ts";
import type { StepRecord } from "../metrics/record.ts";
import { trainRun } from "../run/train-run.ts";
import { fitBatches } from "./fit-batches.ts";
import type { RankRunInput, RankRunReport } from "./train-ranks.fixture.ts";
import { checkLayout, type TrainingLayout } from "./training-layout.ts";

const PROGRAM = new URL("./train-ranks.fixture.ts", import.meta.url);

let device: Device;
let base = "";

before(async () => {
  device = await openCpuDevice({ numThreads: 1 });
});
after(() => device[Symbol.asyncDispose]());
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-ranks-"));
  writeSmallCorpus(join(base, "corpus"));
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

/** Nothing that depends on how long the run will be. */
const ALIKE = ["learningRate.shape=constant", "loss.mtpWeight.switchAt=1", "biasSpeed.switchAt=1"];

/** Four micro-batches a step, without what makes layouts differ in a last bit. */
const PLAIN = ["model.numMtpModules=0", "model.numLayers=3", "recipe=f32"];

const settingsOf = (steps: number, ...assignments: readonly string[]) =>
  smallSettings(
    `data.paths=["${join(base, "corpus")}"]`,
    "batch.microBatch=1",
    `budget.steps=${steps}`,
    ...assignments,
  );

interface RunOptions {
  readonly name: string;
  readonly steps: number;
  readonly settings?: readonly string[];
  readonly resume?: boolean;
}

async function trainAlone({ name, steps, settings = [], resume = false }: RunOptions) {
  const out = join(base, name);
  await trainRun({ device, out, settings: settingsOf(steps, ...settings), resume });
  return out;
}

/** One pipeline. */
const inStages = (schedule: ScheduleKind, numRanks = 2): TrainingLayout => ({
  mesh: { pp: numRanks, ep: 1, dp: 1 },
  schedule,
  ranksPerHost: numRanks,
});

async function trainOver(
  layout: TrainingLayout,
  { name, steps, settings = [], resume = false }: RunOptions,
): Promise<{ readonly out: string; readonly report: RankRunReport }> {
  const out = join(base, name);
  const input: RankRunInput = { out, settings: settingsOf(steps, ...settings), layout, resume };
  const numRanks = numRanksOf(layout.mesh);
  const reports = await runOnThreads({ numRanks, program: PROGRAM, input });
  return { out, report: reports[0] as RankRunReport };
}

const records = (run: string): StepRecord[] =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as StepRecord);

/** What a step computed, without its times. */
const computed = (run: string) =>
  records(run).map(({ tokensPerSecond: _, seconds: __, mfu: ___, ...rest }) => rest);

const weights = (run: string, step: number): Buffer =>
  readFileSync(join(run, "checkpoints", `step-${step}`, "model.safetensors"));

function assertNear(actual: string, expected: string, relative: number): void {
  const [one, other] = [records(actual), records(expected)];
  assert.equal(one.length, other.length);
  for (const [step, { loss }] of one.entries()) {
    const wanted = other[step]!.loss;
    const error = Math.abs(loss / wanted - 1);
    assert.ok(error < relative, `step ${step}: ${loss} and ${wanted}`);
  }
}

test("under a schedule of one direction a run has the bits of one process", async () => {
  const run = { steps: 5, settings: [...PLAIN, "average.decay=0.9", "evaluation.everySteps=2"] };
  const alone = await trainAlone({ name: "alone", ...run });
  for (const schedule of ["1f1b", "dualpipev"] as const) {
    const { out, report } = await trainOver(inStages(schedule), { name: schedule, ...run });
    assert.equal(report, null);
    assert.deepEqual(computed(out), computed(alone), schedule);
    assert.deepEqual(weights(out, 5), weights(alone, 5), schedule);
    const state = (of: string) =>
      readFileSync(join(of, "checkpoints/step-5/training-state/state.safetensors"));
    assert.deepEqual(state(out), state(alone), schedule);
  }
});

test("under DualPipe every part of a model trains alike, with Muon; a trace stays", async () => {
  const run = { steps: 6, settings: ["optimizer.name=muon"] };
  const alone = await trainAlone({ name: "alone", ...run });
  const { out } = await trainOver(inStages("dualpipe"), { name: "ranks", ...run });
  assert.equal(records(out)[0]!.loss, records(alone)[0]!.loss);
  assert.deepEqual(records(out)[0]!.expertLoad, records(alone)[0]!.expertLoad);
  assertNear(out, alone, 1e-3);
  const size = { numRanks: 2, numMicroBatches: 4, numStagesPerRank: 2 };
  const trace = readFileSync(join(out, "trace.json"), "utf8");
  assert.ok(parseTrace(trace, makeSchedule("dualpipe", size)).makespan > 0);
});

test("a run goes on to the bit on the same ranks, and nearly so on others", async () => {
  const settings = ["optimizer.name=muon"];
  const { out: whole } = await trainOver(inStages("dualpipe"), {
    name: "whole",
    steps: 6,
    settings,
  });
  const resumed = { name: "part", steps: 6, settings, resume: true };
  await trainOver(inStages("dualpipe"), { name: "part", steps: 3, settings });
  await trainOver(inStages("dualpipe"), resumed);
  assert.deepEqual(computed(join(base, "part")), computed(whole));
  await trainOver(inStages("dualpipe"), { name: "alone", steps: 3, settings });
  await trainAlone({ ...resumed, name: "alone" });
  assertNear(join(base, "alone"), whole, 1e-3);
  await trainAlone({ name: "three", steps: 3, settings });
  await trainOver(inStages("zb1p", 3), { ...resumed, name: "three" });
  assertNear(join(base, "three"), whole, 1e-3);
});

const layoutOf = (axes: string, schedule: ScheduleKind = "1f1b"): TrainingLayout => {
  const mesh = parseLayout(axes);
  return { mesh, schedule, ranksPerHost: numRanksOf(mesh) };
};

test("ranks that share the batch, or experts too, train as one process", async () => {
  const settings = [...PLAIN, "average.decay=0.9", "evaluation.everySteps=2"];
  const run = { steps: 4, settings };
  const alone = await trainAlone({ name: "alone", ...run });
  for (const axes of ["dp=2", "ep=2"]) {
    const { out, report } = await trainOver(layoutOf(axes), { name: axes, ...run });
    assert.equal(report, null);
    assertNear(out, alone, 1e-5);
    // What nobody has moved yet is the same to the bit, whoever holds which part of it.
    for (const file of ["model", "training-state/state"]) {
      const bytes = (of: string) =>
        readFileSync(join(of, `checkpoints/step-0/${file}.safetensors`));
      assert.deepEqual(bytes(out), bytes(alone), `${axes}: ${file}`);
    }
    const validated = (of: string) => records(of).map((one) => one.validationBitsPerByte ?? 0);
    for (const [step, bits] of validated(out).entries()) {
      const wanted = validated(alone)[step]!;
      assert.ok(Math.abs(bits - wanted) < 1e-5, `${axes}, step ${step}: ${bits}, not ${wanted}`);
    }
    const exchanged = records(out).map((one) => one.exchangedBytes);
    assert.ok(exchanged.every((bytes) => (bytes?.withinHost ?? 0) > 0 === (axes === "ep=2")));
  }
});

test("a run goes on over any other layout from what one has written", async () => {
  const settings = ["optimizer.name=muon", "average.decay=0.9", ...ALIKE];
  const { out: whole } = await trainOver(layoutOf("ep=2"), { name: "whole", steps: 8, settings });
  const part = { name: "part", settings };
  await trainOver(layoutOf("ep=2"), { ...part, steps: 2 });
  await trainOver(layoutOf("ep=2"), { ...part, steps: 4, resume: true });
  const first = records(whole).slice(0, 4);
  assert.deepEqual(
    records(join(base, "part")).map(({ loss, gradNorm }) => [loss, gradNorm]),
    first.map(({ loss, gradNorm }) => [loss, gradNorm]),
  );
  await trainOver(layoutOf("dp=4"), { ...part, steps: 5, resume: true });
  await trainOver(layoutOf("pp=2,ep=2", "zb1p"), { ...part, steps: 6, resume: true });
  await trainAlone({ ...part, steps: 7, resume: true });
  await trainOver(layoutOf("dp=2"), { ...part, steps: 8, resume: true });
  assertNear(join(base, "part"), whole, 1e-4);
});

/** Experts with copies, placed anew every other step. */
const following = (axes: string, schedule?: ScheduleKind): TrainingLayout => ({
  ...layoutOf(axes, schedule),
  experts: { numRedundant: 2, rebalanceSteps: 2 },
});

test("experts with copies follow their load, and the run goes on to the bit", async () => {
  const settings = [...PLAIN, ...ALIKE, "average.decay=0.9", "evaluation.everySteps=2"];
  const alone = await trainAlone({ name: "alone", steps: 9, settings });
  const { out: whole } = await trainOver(following("ep=2"), { name: "whole", steps: 9, settings });
  const movesOf = (of: string) => records(of).map(({ rebalance }) => rebalance?.numMoves);
  assert.deepEqual(
    movesOf(whole).map((moves) => moves !== undefined),
    [false, true, false, true, false, true, false, true, false],
  );
  assert.ok(movesOf(whole).some((moves) => (moves ?? 0) > 0));
  for (const { rebalance } of records(whole)) {
    if (rebalance !== undefined) assert.ok(rebalance.after <= rebalance.before);
  }
  assertNear(whole, alone, 1e-5);
  const validated = (of: string) => records(of).map((one) => one.validationBitsPerByte ?? 0);
  for (const [step, bits] of validated(whole).entries()) {
    assert.ok(Math.abs(bits - validated(alone)[step]!) < 1e-5, `step ${step}`);
  }
  for (const steps of [3, 6, 9]) {
    const resume = steps > 3;
    await trainOver(following("ep=2"), { name: "part", steps, settings, resume });
  }
  const part = join(base, "part");
  assert.deepEqual(computed(part), computed(whole));
  for (const file of ["model.safetensors", "state.safetensors", "experts.json"]) {
    const path = join("checkpoints/step-9", file.startsWith("model") ? "" : "training-state", file);
    assert.deepEqual(readFileSync(join(part, path)), readFileSync(join(whole, path)), file);
  }
});

test("a run with copies of experts goes on over any other layout, and back", async () => {
  const settings = ["optimizer.name=muon", "average.decay=0.9", ...ALIKE];
  const whole = await trainAlone({ name: "whole", steps: 9, settings });
  const part = { name: "part", settings };
  await trainOver(following("ep=2"), { ...part, steps: 3 });
  await trainOver(following("pp=2,ep=2", "dualpipe"), { ...part, steps: 5, resume: true });
  await trainOver(following("ep=2,dp=2"), { ...part, steps: 6, resume: true });
  await trainOver(layoutOf("ep=4"), { ...part, steps: 7, resume: true });
  await trainAlone({ ...part, steps: 8, resume: true });
  await trainOver(following("pp=2,ep=2", "zb1p"), { ...part, steps: 9, resume: true });
  assertNear(join(base, "part"), whole, 1e-4);
});

test("a loss that is not finite ends the run, with the tensor and the step", async () => {
  const settings = ["learningRate.peak=1e30", "learningRate.warmupSteps=0"];
  const { report } = await trainOver(inStages("dualpipe"), { name: "broken", steps: 6, settings });
  assert.equal(report?.code, "training.nonfinite");
  assert.match(report.message, /^step \d: the .* is not finite; \S+.*: /);
});

test("of ranks that share the batch all learn of a loss that is not finite", async () => {
  const settings = ["learningRate.peak=1e30", "learningRate.warmupSteps=0"];
  const { report } = await trainOver(layoutOf("dp=2"), { name: "broken", steps: 6, settings });
  assert.equal(report?.code, "training.nonfinite");
  assert.match(report.message, /^step \d: the .* is not finite; \S+.*: /);
});

test("every launch of a rank is a sign of life", () => {
  let numSigns = 0;
  const ticking = tickingDevice(device, () => numSigns++);
  const options = { precision: "bf16", seed: 1 } as const;
  const { parameters } = new Model(ticking, smallSettings().model, options);
  const before = numSigns;
  parameters.refreshCompute();
  assert.ok(numSigns > before, `${numSigns} after ${before}`);
});

test("micro-batches are divided until the schedule admits them, and kept where it does", () => {
  const fitted = (kind: ScheduleKind, ...assignments: string[]) =>
    fitBatches(smallSettings("batch.microBatch=4", ...assignments), inStages(kind)).batch;
  const ramp = ["batch.sequences=16", "batch.rampFrom=8", "batch.rampTokens=1000"];
  assert.equal(fitted("1f1b").microBatch, 4);
  assert.equal(fitted("dualpipe").microBatch, 1);
  const { microBatch, multiple } = fitted("dualpipe", ...ramp);
  assert.deepEqual({ microBatch, multiple }, { microBatch: 2, multiple: 2 });
  assert.throws(
    () => fitted("dualpipe", "batch.sequences=5", "batch.rampFrom=5", "batch.microBatch=1"),
    (error) => error instanceof OperationalError && error.code === "parallel.schedule",
  );
});

test("batches that a schedule does not admit are refused with flags that it admits", () => {
  const settingsOf = (...assignments: string[]) =>
    smallSettings("model.numLayers=4", ...assignments);
  const layout = layoutOf("pp=2,ep=2,dp=2", "dualpipe");
  const settings = settingsOf("batch.sequences=8", "batch.rampFrom=8");
  let message = "";
  assert.throws(
    () => fitBatches(settings, layout),
    (error) => {
      message = error instanceof OperationalError ? error.message : "";
      return /at least twice the ranks \(4\); take --schedule gpipe, 1f1b/.test(message);
    },
  );
  const [, assignments] = /, or hadal train with --set (.*)$/.exec(message)!;
  fitBatches(settingsOf(...assignments!.split(" --set ")), layout);
  const [, names] = /--schedule ([^-]*), or hadal train with --set/.exec(message)!;
  for (const schedule of names!.split(", ")) {
    fitBatches(settings, { ...layout, schedule: schedule as ScheduleKind });
  }
});

test("a layout that does not fit is refused with one that does", () => {
  const refused = (axes: string, ...assignments: string[]): string => {
    const settings = smallSettings(...assignments);
    try {
      checkLayout(settings, layoutOf(axes));
      fitBatches(settings, layoutOf(axes));
    } catch (error) {
      assert.ok(error instanceof OperationalError);
      return error.message;
    }
    return "";
  };
  assert.equal(refused("pp=2,ep=2"), "");
  assert.match(refused("pp=4"), /^a model of 2 layers has at most 3 stages, not 4; take fewer/);
  assert.match(refused("ep=3"), /^4 routed experts do not divide over 3 .*take 1, 2, 4 of them$/);
  assert.match(
    refused("ep=2,dp=2", "model.numRoutedExperts=0"),
    /^layout ep=2,dp=2: a dense model has no experts to share; take dp=4$/,
  );
  assert.match(refused("dp=3"), /^layout dp=3: batches of 4 to 4 sequences .*multiples of 3$/);
  const copies =
    (axes: string, numRedundant: number, ...assignments: string[]) =>
    () => {
      const experts = { numRedundant, rebalanceSteps: 0 };
      checkLayout(smallSettings(...assignments), { ...layoutOf(axes), experts });
    };
  assert.throws(copies("ep=2", 1), /^OperationalError: 4 routed and 1 redundant experts do not /);
  const rounded = ["recipe.tensors.moment.format=bf16", "recipe.stochasticRounding=true"];
  assert.throws(copies("ep=2", 2, ...rounded), /would make the copies .*stochasticRounding=false/);
  copies("ep=2", 2, ...rounded, "optimizer.name=muon")();
  assert.match(
    refused("ep=2", "recipe=fp8", "recipe.tensors.dispatch.tile=tensor"),
    /must be 1x128 or row where experts are on several ranks/,
  );
});
