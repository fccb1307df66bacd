/**
 * @file A run over the ranks of a pipeline is the run of one process: the same losses, norms and
 * checkpoints, exact resuming on the same layout and nearly so on another.
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
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Model } from "../../model/model.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { makeSchedule, type ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { parseTrace } from "../../parallel/pipeline/trace.ts";
import type { StepRecord } from "../metrics/record.ts";
import { trainRun } from "../run/train-run.ts";
import { fitBatches } from "./fit-batches.ts";
import { tickingDevice } from "./ticking-device.ts";
import type { RankRunInput, RankRunReport } from "./train-ranks.fixture.ts";

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

async function trainOver(
  schedule: ScheduleKind,
  { name, steps, settings = [], resume = false }: RunOptions,
  numRanks = 2,
): Promise<{ readonly out: string; readonly report: RankRunReport }> {
  const out = join(base, name);
  const input: RankRunInput = {
    out,
    settings: settingsOf(steps, ...settings),
    schedule,
    resume,
  };
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
    const { out, report } = await trainOver(schedule, { name: schedule, ...run });
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
  const { out } = await trainOver("dualpipe", { name: "ranks", ...run });
  assert.equal(records(out)[0]!.loss, records(alone)[0]!.loss);
  assert.deepEqual(records(out)[0]!.expertLoad, records(alone)[0]!.expertLoad);
  assertNear(out, alone, 1e-3);
  const size = { numRanks: 2, numMicroBatches: 4, numStagesPerRank: 2 };
  const trace = readFileSync(join(out, "trace.json"), "utf8");
  assert.ok(parseTrace(trace, makeSchedule("dualpipe", size)).makespan > 0);
});

test("a run goes on to the bit on the same ranks, and nearly so on others", async () => {
  const settings = ["optimizer.name=muon"];
  const { out: whole } = await trainOver("dualpipe", { name: "whole", steps: 6, settings });
  const resumed = { name: "part", steps: 6, settings, resume: true };
  await trainOver("dualpipe", { name: "part", steps: 3, settings });
  await trainOver("dualpipe", resumed);
  assert.deepEqual(computed(join(base, "part")), computed(whole));
  await trainOver("dualpipe", { name: "alone", steps: 3, settings });
  await trainAlone({ ...resumed, name: "alone" });
  assertNear(join(base, "alone"), whole, 1e-3);
  await trainAlone({ name: "three", steps: 3, settings });
  await trainOver("zb1p", { ...resumed, name: "three" }, 3);
  assertNear(join(base, "three"), whole, 1e-3);
});

test("a loss that is not finite ends the run, with the tensor and the step", async () => {
  const settings = ["learningRate.peak=1e30", "learningRate.warmupSteps=0"];
  const { report } = await trainOver("dualpipe", { name: "broken", steps: 6, settings });
  assert.equal(report?.code, "training.nonfinite");
  assert.match(report.message, /^step \d: the .* is not finite; \S+.*: /);
});

test("every launch of a rank is a sign of life", () => {
  let numSigns = 0;
  const ticking = tickingDevice(device, { tick: () => numSigns++ });
  const options = { precision: "bf16", seed: 1 } as const;
  const { parameters } = new Model(ticking, smallSettings().model, options);
  const before = numSigns;
  parameters.refreshCompute();
  assert.ok(numSigns > before, `${numSigns} after ${before}`);
});

test("micro-batches are divided until the schedule admits them, and kept where it does", () => {
  const fitted = (kind: ScheduleKind, ...assignments: string[]) =>
    fitBatches(smallSettings("batch.microBatch=4", ...assignments), kind, 2).batch;
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
