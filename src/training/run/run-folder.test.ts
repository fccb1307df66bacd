/** @file Run folders in the states that kills, second trainers and careless users leave behind. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { OperationalError } from "../../base/errors.ts";
import { lockRun } from "./lock.ts";
import { listCheckpoints, RunFolder, resolveCheckpoint } from "./run-folder.ts";

let base = "";
let run = "";

beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-run-"));
  run = join(base, "runs", "first");
});

afterEach(() => rmSync(base, { recursive: true, force: true }));

const failsWith = (code: string) => (error: unknown) =>
  error instanceof OperationalError && error.code === code;

function begin(steps: number): void {
  using folder = RunFolder.create(run, { seed: 1 });
  folder.beginSeries(0);
  for (let step = 0; step < steps; step++) folder.appendMetrics({ step }, { "loss/train": step });
}

const metricSteps = (): number[] =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => (JSON.parse(line) as { step: number }).step);

test("a folder that holds a run is not overwritten", () => {
  begin(2);
  mkdirSync(join(run, "checkpoints", "step-0"));
  assert.throws(() => RunFolder.create(run, {}), failsWith("run.exists"));
  assert.deepEqual(metricSteps(), [0, 1]);
});

test("a folder that holds somebody's files is left as it is", () => {
  mkdirSync(run, { recursive: true });
  writeFileSync(join(run, "config.json"), "mine");
  assert.throws(() => RunFolder.create(run, {}), failsWith("run.exists"));
  assert.deepEqual(readdirSync(run), ["config.json"]);
  assert.equal(readFileSync(join(run, "config.json"), "utf8"), "mine");
});

test("a run that was killed before its first checkpoint is begun again", () => {
  begin(2);
  begin(1);
  assert.deepEqual(metricSteps(), [0]);
});

test("a folder without a run is not resumed", () => {
  assert.throws(() => RunFolder.open(run), failsWith("run.missing"));
});

test("resuming drops the lines after the checkpoint, and a torn last line", () => {
  begin(6);
  appendFileSync(join(run, "metrics.jsonl"), '{"step":6,"lo');
  appendFileSync(join(run, "samples.jsonl"), '{"step":2,"text":"a"}\n{"step":5,"text":"b"}\n');
  using folder = RunFolder.open(run);
  folder.beginSeries(4);
  folder.appendMetrics({ step: 4 }, {});
  assert.deepEqual(metricSteps(), [0, 1, 2, 3, 4]);
  assert.equal(readFileSync(join(run, "samples.jsonl"), "utf8"), '{"step":2,"text":"a"}\n');
});

test("a resumed run writes a TensorBoard file of its own", () => {
  begin(1);
  using folder = RunFolder.open(run);
  folder.beginSeries(1);
  const events = readdirSync(run).filter((name) => name.startsWith("events.out.tfevents."));
  assert.equal(events.length, 2);
});

test("temporary folders of killed writers are removed, and never listed as checkpoints", () => {
  begin(1);
  for (const name of ["step-10", "step-9", "step-100.tmp-999999999", "notes"]) {
    mkdirSync(join(run, "checkpoints", name));
  }
  assert.deepEqual(
    listCheckpoints(run).map(({ step }) => step),
    [9, 10],
  );
  RunFolder.open(run)[Symbol.dispose]();
  assert.deepEqual(readdirSync(join(run, "checkpoints")).sort(), ["notes", "step-10", "step-9"]);
  assert.equal(resolveCheckpoint(run), join(run, "checkpoints", "step-10"));
});

test("pruning keeps the last checkpoints", () => {
  using folder = RunFolder.create(run, {});
  for (const step of [5, 10, 15, 20]) mkdirSync(folder.checkpointPath(step));
  folder.pruneCheckpoints(2);
  assert.deepEqual(
    listCheckpoints(run).map(({ step }) => step),
    [15, 20],
  );
});

test("a run without a checkpoint cannot be used as a model, and says so", () => {
  begin(1);
  assert.throws(() => resolveCheckpoint(run), failsWith("run.empty"));
});

test("a file is no model, and a GGUF file is told to be for other programs", () => {
  const file = join(base, "model.gguf");
  assert.throws(() => resolveCheckpoint(file), /gguf is no folder; .* for other programs\)$/);
  assert.throws(() => resolveCheckpoint(import.meta.filename), /is no folder; .*config\.json$/);
});

test("a second trainer is refused while the first one lives", () => {
  begin(1);
  using _folder = RunFolder.open(run);
  const script = `
    import { RunFolder } from ${JSON.stringify(join(import.meta.dirname, "run-folder.ts"))};
    try { RunFolder.open(process.argv[1]); console.log("taken"); }
    catch (error) { console.log(error.code); }`;
  const child = spawnSync(process.execPath, ["--input-type=module-typescript", "-e", script, run], {
    encoding: "utf8",
  });
  assert.equal(child.stdout.trim(), "run.locked", child.stderr);
});

test("a lock left by a killed process is taken over", () => {
  begin(1);
  const child = spawnSync(process.execPath, ["-e", "console.log(process.pid)"], {
    encoding: "utf8",
  });
  const dead = { pid: Number(child.stdout), started: "1", host: hostname() };
  writeFileSync(join(run, "lock.json"), JSON.stringify(dead));
  using _lock = lockRun(run);
  assert.match(readFileSync(join(run, "lock.json"), "utf8"), new RegExp(`"pid":${process.pid},`));
});

test("a process id used again by another program does not keep the lock", {
  skip: existsSync("/proc/self/stat") ? false : "this system does not tell when a process started",
}, () => {
  begin(1);
  const reused = { pid: process.ppid, started: "1", host: hostname() };
  writeFileSync(join(run, "lock.json"), JSON.stringify(reused));
  lockRun(run)[Symbol.dispose]();
  assert.equal(existsSync(join(run, "lock.json")), false);
});

test("a lock from another host is refused with its file named; a torn one protects nobody", () => {
  begin(1);
  const path = join(run, "lock.json");
  writeFileSync(path, JSON.stringify({ pid: 1, started: "1", host: "elsewhere.example" }));
  assert.throws(
    () => lockRun(run),
    (error) => failsWith("run.locked")(error) && String(error).includes(path),
  );
  writeFileSync(path, '{"pi');
  lockRun(run)[Symbol.dispose]();
  assert.deepEqual(
    readdirSync(run).filter((name) => name.startsWith("lock")),
    [],
  );
});
