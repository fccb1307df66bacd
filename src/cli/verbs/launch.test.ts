/** @file `hadal launch` as a user runs it. Skipped where there is no Open MPI. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const HADAL = fileURLToPath(new URL("../../../bin/hadal.js", import.meta.url));
const found = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
const skip =
  found.status === 0 && found.stdout.includes("Open MPI")
    ? false
    : "Open MPI's mpirun is not installed here";

function launch(...words: string[]) {
  return spawnSync(process.execPath, [HADAL, "launch", ...words], { encoding: "utf8" });
}

test("launch starts a process a rank and divides the threads among them", { skip }, () => {
  const { HADAL_THREADS: _, ...env } = process.env;
  const script = "console.log(process.env.OMPI_COMM_WORLD_RANK + '/' + process.env.HADAL_THREADS)";
  const words = ["--ranks", "3", "--", "node", "-e", script];
  const { status, stdout } = spawnSync(process.execPath, [HADAL, "launch", ...words], {
    encoding: "utf8",
    env,
  });
  assert.equal(status, 0);
  const lines = stdout.trim().split("\n").toSorted();
  assert.deepEqual(
    lines.map((line) => line.split("/")[0]),
    ["0", "1", "2"],
  );
  assert.ok(lines.every((line) => Number(line.split("/")[1]) >= 1));
});

test("launch gives the words after -- to this hadal, and its own failure back", { skip }, () => {
  const good = launch("--ranks", "2", "--", "hadal", "--version");
  assert.match(good.stdout, /^hadal \d.*\nhadal \d/);
  const bad = launch("--ranks", "2", "--", "hadal", "no-such-verb");
  assert.equal(bad.status, 1);
  assert.match(bad.stderr, /unknown verb no-such-verb/);
  assert.match(bad.stderr, /mpirun ended with code 2/);
});

test("launch without a program says what is missing", () => {
  const { status, stderr } = launch("--ranks", "2");
  assert.equal(status, 2);
  assert.match(stderr, /-- COMMAND… is missing/);
});
