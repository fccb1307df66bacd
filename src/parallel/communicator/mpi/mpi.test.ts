/**
 * @file The conformance suite under MPI, and what becomes of the others when a process goes wrong.
 * Skipped where there is no Open MPI.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { CASE_NAMES } from "../conformance-ranks.fixture.ts";
import { runOnThreads } from "../threads/run-on-threads.ts";

const found = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
const isOpenMpi = found.status === 0 && /Open MPI/.test(found.stdout);
const skip = isOpenMpi ? false : "Open MPI's mpirun is not installed here";

const CONFORMANCE = new URL("../conformance-ranks.fixture.ts", import.meta.url);
const PIPELINE = new URL("../../pipeline/executor/pipeline-ranks.fixture.ts", import.meta.url);
const FAULTY = new URL("../threads/faulty-ranks.fixture.ts", import.meta.url);

interface Told {
  readonly rank: number;
  readonly value?: unknown;
  readonly error?: string;
}

/** What each rank told, how mpirun ended, and what it said. */
function mpirun(numRanks: number, program: URL, input: string) {
  const folder = mkdtempSync(join(tmpdir(), "hadal-mpi-"));
  try {
    const asRoot = process.getuid?.() === 0 ? ["--allow-run-as-root"] : [];
    const fixture = fileURLToPath(new URL("./mpi-process.fixture.ts", import.meta.url));
    const command = [process.execPath, fixture, program.href, input, "1000", folder];
    const options = [...asRoot, "--oversubscribe", "-np", String(numRanks)];
    const { status, stderr } = spawnSync("mpirun", [...options, ...command], {
      encoding: "utf8",
      timeout: 60_000,
    });
    const told = readdirSync(folder).map(
      (name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Told,
    );
    return { status, stderr, told: told.toSorted((a, b) => a.rank - b.rank) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const numRanks of [1, 3]) {
  test(`${numRanks} processes under MPI pass every case of the conformance suite`, { skip }, () => {
    const { told, status, stderr } = mpirun(numRanks, CONFORMANCE, "");
    assert.equal(status, 0, stderr);
    assert.equal(told.length, numRanks);
    for (const { rank, value, error } of told) {
      assert.equal(error, undefined);
      for (const name of CASE_NAMES) {
        assert.equal((value as Record<string, string>)[name], "", `rank ${rank}: ${name}`);
      }
    }
  });
}

const FAULTS: readonly (readonly [fault: string, what: string, message: RegExp])[] = [
  ["early", "throws before it joins", /rank 1 failed: broken before joining/],
  ["hangs", "hangs", /rank 1 has shown no sign of life for 1 s/],
  ["mismatch", "sends another number of bytes", /rank 1 sent 16 bytes where rank 0 expects 32/],
];

for (const [fault, what, message] of FAULTS) {
  test(`under MPI, when a rank ${what}, the others end within seconds and say why`, {
    skip,
  }, () => {
    const start = performance.now();
    const { told, status } = mpirun(3, FAULTY, fault);
    assert.ok(performance.now() - start < 20_000);
    assert.notEqual(status, 0);
    const others = told.filter(({ rank }) => rank !== 1);
    assert.deepEqual(
      others.map(({ rank }) => rank),
      [0, 2],
    );
    for (const { error } of others) assert.match(error ?? "", message);
  });
}

test("under MPI, when a process ends early, mpirun ends the others and says so", { skip }, () => {
  const { status, stderr } = mpirun(3, FAULTY, "exits");
  assert.notEqual(status, 0);
  assert.match(stderr, /exit/i);
});

test("DualPipe under MPI gives the bits that it gives on threads", { skip }, async () => {
  const input = { kind: "dualpipe", numMicroBatches: 4, numStagesPerRank: 1, communicates: true };
  const { told, status, stderr } = mpirun(2, PIPELINE, JSON.stringify(input));
  assert.equal(status, 0, stderr);
  const onThreads = await runOnThreads({ numRanks: 2, program: PIPELINE, input });
  const bits = (report: unknown): unknown => {
    const { losses, gradients } = JSON.parse(JSON.stringify(report)) as Record<string, unknown>;
    return { losses, gradients };
  };
  assert.deepEqual(
    told.map(({ value }) => bits(value)),
    onThreads.map(bits),
  );
});
