/**
 * @file `hadal train` over two hosts (test/fixtures/hosts.ts): the bits of threads. Skipped where
 * hosts cannot be made, with the reason.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, before, test } from "node:test";
import { runOnHosts, skipWithoutHosts } from "../../../test/fixtures/hosts.ts";
import { beginning, HADAL, prepare } from "./lost-ranks.fixture.ts";

let base = "";
before(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-hosts-"));
  prepare(base);
});
after(() => rmSync(base, { recursive: true, force: true }));

const losses = (run: string): number[] =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { readonly loss: number }).loss);

test("over two hosts a run has the losses of threads; one rank speaks", {
  skip: skipWithoutHosts,
}, () => {
  const [onHosts, onThreads] = [join(base, "hosts"), join(base, "threads")];
  const folder = join(base, "ranks");
  mkdirSync(folder);
  const command = [process.execPath, HADAL, ...beginning(base, onHosts), "--steps", "4"];
  const { status, stderr, ranks } = runOnHosts({ folder, numHosts: 2, ranksPerHost: 1, command });
  assert.equal(status, 0, stderr + ranks[0]?.stderr + ranks[1]?.stderr);
  assert.match(ranks[0]!.stdout, /^done after 4 steps/m);
  assert.doesNotMatch(ranks[1]!.stdout, /done/);
  const words = [...beginning(base, onThreads), "--steps", "4", "--ranks", "2"];
  assert.equal(spawnSync(process.execPath, [HADAL, ...words]).status, 0);
  assert.equal(losses(onHosts).length, 4);
  assert.deepEqual(losses(onHosts), losses(onThreads));
});
