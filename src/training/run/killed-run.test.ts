/**
 * @file `kill -9` at random moments, then resume: the losses are those of a run that was never
 * killed. The seed stands in the test's name, so that every failure shows it.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { lossSeries, trainWithKills } from "../../../test/fixtures/killed-run.ts";
import { writeSmallCorpus } from "../../../test/fixtures/small-corpus.ts";
import { Random } from "../../base/random.ts";

const SEED = Date.now() % 1_000_000;
const ASSIGNMENTS = ["budget.steps=40", "checkpoint.everySteps=3", "evaluation.everySteps=20"];

test(`a run killed three times has the losses of one left alone; seed ${SEED}`, async () => {
  const base = mkdtempSync(join(tmpdir(), "hadal-kill-"));
  try {
    const corpus = join(base, "corpus");
    writeSmallCorpus(corpus);
    const random = new Random(SEED, "kills");
    const common = { corpus, assignments: ASSIGNMENTS, random, stepsMax: 10 };
    await trainWithKills({ ...common, run: join(base, "whole"), kills: 0 });
    const killedAt = await trainWithKills({ ...common, run: join(base, "killed"), kills: 3 });
    const [whole, killed] = [lossSeries(join(base, "whole")), lossSeries(join(base, "killed"))];
    assert.equal(whole.length, 40);
    assert.equal(killedAt.length, 3, "every kill came before the end");
    assert.deepEqual(killed, whole, `killed at steps ${killedAt.join(", ")}`);
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
});
