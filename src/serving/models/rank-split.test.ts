/**
 * @file Prefill and decode on two ranks say what one engine says, on threads and under MPI. The
 * second is skipped where there is no Open MPI.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { TINY_CHAT } from "../test-support.ts";
import { openEngineHere } from "./open-engine.ts";
import { collectAll, randomRequests } from "./random-requests.fixture.ts";
import type { SplitRanksInput, SplitRanksReport } from "./split-ranks.fixture.ts";

const PROGRAM = new URL("./split-ranks.fixture.ts", import.meta.url);
const PROCESS = new URL("../../parallel/communicator/mpi/mpi-process.fixture.ts", import.meta.url);
const INPUT: SplitRanksInput = { models: [TINY_CHAT, TINY_CHAT], seed: 31, count: 8 };

const found = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
const skip =
  found.status === 0 && found.stdout.includes("Open MPI")
    ? false
    : "Open MPI's mpirun is not installed here";

async function ofOneEngine() {
  const one = await openEngineHere(TINY_CHAT, { HADAL_THREADS: "1" });
  const told = await collectAll(one, randomRequests(INPUT.seed, INPUT.count));
  await one.close();
  return told;
}

function assertSplit({ told, ownTokens }: SplitRanksReport, expected: unknown): void {
  assert.deepEqual(told, expected, `seed ${INPUT.seed}`);
  const prompts = randomRequests(INPUT.seed, INPUT.count).map(({ prompt }) => prompt.length);
  const all = prompts.reduce((sum, length) => sum + length, 0);
  assert.ok(ownTokens < all / 2, `${ownTokens} of ${all} prompt tokens were read by rank 0`);
}

test("prefill and decode on two ranks on threads give the tokens of one engine", async () => {
  const reports = await runOnThreads({ numRanks: 2, program: PROGRAM, input: INPUT });
  assertSplit(reports[0] as SplitRanksReport, await ofOneEngine());
});

test("under MPI as well", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "hadal-split-"));
  try {
    const asRoot = process.getuid?.() === 0 ? ["--allow-run-as-root"] : [];
    const options = [...asRoot, "--oversubscribe", "--bind-to", "none", "-np", "2"];
    const words = [fileURLToPath(PROCESS), PROGRAM.href, JSON.stringify(INPUT), "6000", folder];
    const { status, stderr } = spawnSync("mpirun", [...options, process.execPath, ...words], {
      encoding: "utf8",
      timeout: 120_000,
    });
    assert.equal(status, 0, stderr);
    const ends = readdirSync(folder).map(
      (name) =>
        JSON.parse(readFileSync(join(folder, name), "utf8")) as {
          readonly rank: number;
          readonly value: SplitRanksReport;
        },
    );
    const first = ends.find(({ rank }) => rank === 0);
    const expected: unknown = JSON.parse(JSON.stringify(await ofOneEngine()));
    assertSplit(first!.value, expected);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("ranks whose models differ, or cannot be opened, say so", async () => {
  const input = { ...INPUT, models: [TINY_CHAT, join(tmpdir(), "no-such-model")] };
  await assert.rejects(runOnThreads({ numRanks: 2, program: PROGRAM, input }), {
    name: "OperationalError",
    message: /no-such-model/,
  });
});
