/**
 * @file `hadal train` over ranks as a user runs it: on threads it says what it says in one process,
 * and under MPI it computes the same bits. The second part is skipped where there is no Open MPI.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { writeSmallCorpus } from "../../../test/fixtures/small-corpus.ts";
import { smallSettings } from "../../../test/fixtures/small-run.ts";
import { leashed } from "../../../test/support/leash.ts";

const HADAL = fileURLToPath(new URL("../../../bin/hadal.js", import.meta.url));
const found = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
const skip =
  found.status === 0 && found.stdout.includes("Open MPI")
    ? false
    : "Open MPI's mpirun is not installed here";

let base = "";
before(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-cli-ranks-"));
  writeSmallCorpus(join(base, "corpus"));
  const settings = smallSettings(
    `data.paths=["${join(base, "corpus")}"]`,
    "budget.steps=4",
    'samples.prompts=["let "]',
    "samples.tokensMax=4",
  );
  writeFileSync(join(base, "settings.json"), JSON.stringify(settings));
});
after(() => rmSync(base, { recursive: true, force: true }));

function hadal(...words: readonly string[]) {
  return spawnSync(process.execPath, [HADAL, ...words], { encoding: "utf8", timeout: 120_000 });
}

const train = (out: string): string[] => [
  "train",
  "--config",
  join(base, "settings.json"),
  "--data",
  join(base, "corpus"),
  "--out",
  join(base, out),
];

const losses = (out: string): number[] =>
  readFileSync(join(base, out, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { loss: number }).loss);

const COPIES = ["--redundant-experts", "2", "--rebalance-steps", "2"];
const ALL_AXES = ["--schedule", "zb1p", "--layout", "pp=2,ep=2", ...COPIES];

test("on threads a run says, writes and samples what it does in one process", () => {
  const { status, stdout, stderr } = hadal(...train("threads"), "--ranks", "2");
  assert.equal(status, 0, stderr);
  for (const line of [
    /^data: 12 documents/m,
    /^step 4: \d\.\d+ bits per byte \(held-out text\)$/m,
    /^done after 4 steps/m,
  ]) {
    assert.match(stdout, line);
  }
  assert.equal(losses("threads").length, 4);
  assert.match(readFileSync(join(base, "threads", "samples.jsonl"), "utf8"), /"prompt":"let "/);
  const again = hadal(...train("threads"), "--ranks", "2");
  assert.equal(again.status, 1);
  assert.match(
    again.stderr,
    /^error: .* already holds a run; carry on with hadal train --out .* --resume, or/m,
  );
});

test("over a layout a run computes the same under MPI and on threads, and tells its bytes", () => {
  const { status, stderr } = hadal(...train("layout"), "--ranks", "4", ...ALL_AXES);
  assert.equal(status, 0, stderr);
  for (const [step, loss] of losses("layout").entries()) {
    assert.ok(Math.abs(loss / losses("threads")[step]! - 1) < 1e-3, `step ${step}: ${loss}`);
  }
  const metrics = readFileSync(join(base, "layout", "metrics.jsonl"), "utf8");
  assert.match(metrics, /"withinHost":\d+/);
  assert.match(metrics, /"rebalance":\{"numMoves":\d/);
  if (skip !== false) return;
  const words = ["launch", "--ranks", "4", "--", "hadal"];
  const launched = hadal(...words, ...train("layout-mpi"), ...ALL_AXES);
  assert.equal(launched.status, 0, launched.stderr);
  assert.deepEqual(losses("layout-mpi"), losses("layout"));
});

test("a run over a layout that is killed goes on where it was", async () => {
  const saved = ["--set", "checkpoint.everySteps=3"];
  const words = ["--ranks", "2", "--layout", "ep=2", ...COPIES, ...saved];
  const whole = hadal(...train("whole"), ...words, "--steps", "40");
  assert.equal(whole.status, 0, whole.stderr);
  const killed = spawn(process.execPath, [
    HADAL,
    ...[...train("killed"), ...words, "--steps", "40"],
  ]);
  using _ = leashed(killed);
  const ended = once(killed, "exit");
  const metrics = join(base, "killed", "metrics.jsonl");
  const numSteps = (): number => (existsSync(metrics) ? losses("killed").length : 0);
  while (killed.exitCode === null && numSteps() < 7) await setTimeout(5);
  killed.kill("SIGKILL");
  assert.deepEqual(await ended, [null, "SIGKILL"]);
  const resumed = hadal("train", "--out", join(base, "killed"), "--resume", ...words);
  assert.equal(resumed.status, 0, resumed.stderr);
  assert.deepEqual(losses("killed"), losses("whole"));
});

test("under MPI a run computes the bits of threads, and one rank speaks", { skip }, () => {
  const words = ["launch", "--ranks", "2", "--", "hadal"];
  const { status, stdout, stderr } = hadal(...words, ...train("mpi"));
  assert.equal(status, 0, stderr);
  assert.equal(stdout.match(/^done after 4 steps/gm)?.length, 1);
  assert.deepEqual(losses("mpi"), losses("threads"));
});

test("what the quickstart advises of ranks are flags that it has", () => {
  const words = ["quickstart", "--no-serve", "--out", join(base, "quick"), "--data", base];
  const odd = hadal(...words, "--ranks", "3");
  assert.match(
    odd.stderr,
    /^error: dualpipe over .* 3 ranks .*; 1f1b, zb1p and dualpipev take any$/m,
  );
  for (const schedule of ["1f1b", "dualpipev"]) {
    const refused = hadal(...words, "--ranks", "9", "--schedule", schedule);
    assert.match(refused.stderr, /^error: a model of \d layers has at most \d+ stages/m);
  }
});

test("what ranks there are is said once, and a schedule is of ranks", () => {
  const odd = hadal(...train("odd"), "--ranks", "3");
  assert.match(
    odd.stderr,
    /^error: dualpipe over a pipeline of 3 ranks .*: the number of ranks must be even/m,
  );
  const alone = hadal(...train("odd"), "--schedule", "1f1b");
  assert.match(alone.stderr, /^error: --schedule is of ranks; give --ranks N too/m);
  for (const [words, refusal] of [
    [["--layout", "dp=2"], /^error: --layout dp=2 is of 2 ranks and there is 1; give --ranks 2$/m],
    [
      ["--ranks", "4", "--layout", "ep=2"],
      /^error: --layout ep=2 is of 2 .* are 4; give --ranks 2, or take --layout ep=2,dp=2$/m,
    ],
    [
      ["--ranks", "2", ...COPIES],
      /^error: --redundant-experts 2 is of ranks that share experts; give .* --layout ep=2$/m,
    ],
    [["--rebalance-steps", "5"], /^error: --rebalance-steps 5 is of ranks that share experts/m],
    [["--ranks", "2", "--layout", "tp=2"], /^error: layout tp=2: "tp=2" is not an axis/m],
  ] as const) {
    assert.match(hadal(...train("odd"), ...words).stderr, refusal);
  }
});
