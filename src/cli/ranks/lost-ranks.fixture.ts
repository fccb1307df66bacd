/**
 * @file `hadal train` over ranks of which one goes wrong, as users see it: what the others say, how
 * long it takes them, and that the run goes on from its checkpoint afterwards.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { RankFault } from "../../../test/fixtures/fault.ts";
import { writeSmallCorpus } from "../../../test/fixtures/small-corpus.ts";
import { smallSettings } from "../../../test/fixtures/small-run.ts";

export const HADAL: string = fileURLToPath(new URL("../../../bin/hadal.js", import.meta.url));
const FAULT = new URL("../../../test/fixtures/fault.ts", import.meta.url).href;
/** Every other rank has ended after ten seconds; mpirun takes some more to end the lost one too. */
const END_MS = { threads: 10_000, mpi: 12_000 } as const;
/** One that computes for ever is given time that other programs took from it. */
const SPIN_END_MS = 40_000;
/** The lost process itself is gone after this. */
const GONE_MS = 5000;
const STEPS = 40;

const found = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
const hasOpenMpi = found.status === 0 && found.stdout.includes("Open MPI");
export const skipWithoutMpi: string | false = hasOpenMpi
  ? false
  : "Open MPI's mpirun is not installed here";

/** Settings and corpus in an empty folder. */
export function prepare(base: string): void {
  writeSmallCorpus(join(base, "corpus"));
  const settings = smallSettings(
    `data.paths=["${join(base, "corpus")}"]`,
    `budget.steps=${STEPS}`,
    "checkpoint.everySteps=3",
    "samples.everySteps=0",
  );
  writeFileSync(join(base, "settings.json"), JSON.stringify(settings));
}

export interface LostRank extends Pick<RankFault, "rank" | "fault"> {
  readonly base: string;
  readonly ranks: "threads" | "mpi";
  /** What the error says. */
  readonly message: RegExp;
}

/** Two ranks train, one is lost, the other ends; then the run is carried on by one process. */
export function loseAndResume({ base, ranks, message, rank, fault }: LostRank): void {
  const run = join(base, `${ranks}-${fault}-${rank}`);
  const lost = train(ranks, beginning(base, run), { rank, fault, run, steps: 8 });
  const tookMs = lost.endedAt - Number(readFileSync(`${run}.fault`, "utf8"));
  assert.notEqual(lost.status, 0);
  assert.match(lost.stderr, message);
  const limitMs = fault === "spins" ? SPIN_END_MS : END_MS[ranks];
  assert.ok(tookMs < limitMs, `the others ended after ${tookMs} ms: ${lost.stderr}`);
  resumeAlone(run);
}

/** The words of a new run. */
export function beginning(base: string, run: string): readonly string[] {
  const config = ["--config", join(base, "settings.json"), "--data", join(base, "corpus")];
  return ["train", "--out", run, ...config];
}

/** A run that was ended is carried on by one process, and no step of it is missing. */
export function resumeAlone(run: string): void {
  const start = Date.now();
  const resume = (): Trained => train("one", ["train", "--out", run, "--resume"]);
  let resumed = resume();
  // The system takes a moment to end a large process that was killed.
  while (/is being trained by process/.test(resumed.stderr) && Date.now() - start < GONE_MS) {
    resumed = resume();
  }
  assert.equal(resumed.status, 0, resumed.stderr);
  assert.match(resumed.stdout, new RegExp(`^done after ${STEPS} steps`, "m"));
  const steps = readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { readonly step: number }).step);
  assert.deepEqual(
    steps,
    Array.from({ length: STEPS }, (_, step) => step),
  );
}

/** The environment in which a rank goes wrong. */
export function faultyEnvironment(fault: RankFault): Readonly<Record<string, string>> {
  const options = process.env["NODE_OPTIONS"] ?? "";
  return {
    NODE_OPTIONS: `${options} --import=${FAULT}`,
    HADAL_TEST_FAULT: JSON.stringify(fault),
  };
}

interface Trained {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Milliseconds since 1970. */
  readonly endedAt: number;
}

function train(
  ranks: LostRank["ranks"] | "one",
  words: readonly string[],
  fault?: RankFault,
): Trained {
  const launch = ranks === "mpi" ? ["launch", "--ranks", "2", "--", "hadal"] : [];
  const threads = ranks === "threads" ? ["--ranks", "2"] : [];
  const faulty = fault === undefined ? {} : faultyEnvironment(fault);
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [HADAL, ...launch, ...words, ...threads],
    {
      encoding: "utf8",
      env: { ...process.env, ...faulty },
      timeout: 120_000,
    },
  );
  return { status, stdout, stderr, endedAt: Date.now() };
}
