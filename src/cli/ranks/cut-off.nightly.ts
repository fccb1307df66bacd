/**
 * @file `hadal train` over two hosts of which one loses its network: ranks on both sides end in
 * time and say why, and the run goes on from its checkpoint. Skipped where hosts cannot be made.
 */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, before, test } from "node:test";
import { runOnHosts, skipWithoutHosts } from "../../../test/fixtures/hosts.ts";
import { beginning, faultyEnvironment, HADAL, prepare, resumeAlone } from "./lost-ranks.fixture.ts";

const END_MS = 10_000;

let base = "";
before(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-cut-"));
  prepare(base);
});
after(() => rmSync(base, { recursive: true, force: true }));

test("when a host is cut off, the ranks on both sides end, and the run resumes", {
  skip: skipWithoutHosts,
}, () => {
  const run = join(base, "run");
  const folder = join(base, "ranks");
  mkdirSync(folder);
  const command = [process.execPath, HADAL, ...beginning(base, run)];
  const cut = join(folder, "cut");
  const env = faultyEnvironment({ rank: 0, fault: "cutOff", run, steps: 8, cut });
  const { ranks, ends } = runOnHosts({ folder, numHosts: 2, ranksPerHost: 1, command, env });
  for (const [rank, { stderr }] of ranks.entries()) {
    const endedMs = ends.get(String(rank)) ?? Number.POSITIVE_INFINITY;
    assert.ok(endedMs < END_MS, `rank ${rank} ended after ${endedMs} ms`);
    assert.match(stderr, new RegExp(`^error: nothing was heard of rank ${1 - rank} for 6 s`, "m"));
  }
  assert.ok(ends.has("mpirun"), "mpirun notices as well");
  // A leader that mpirun killed first has left its lock, and it ran on another host.
  rmSync(join(run, "lock.json"), { force: true });
  resumeAlone(run);
});
