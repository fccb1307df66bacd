/** @file How many drafts pay, on simulated machines and models. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { DRAFTS_MAX, DraftPolicy } from "./draft-policy.ts";

const SEED = 41;

interface Simulated {
  /** Chance of each draft to stand. */
  readonly chance: number;
  readonly passMs: (numDrafts: number) => number;
  readonly draftMs: number;
}

/** Steps as an engine takes them; returns the drafts of the last ones. */
function run(policy: DraftPolicy, { chance, passMs, draftMs }: Simulated, numSteps: number) {
  const random = new Random(SEED);
  const depths: number[] = [];
  let numDrafts = 0;
  for (let step = 0; step < numSteps; step++) {
    if (numDrafts > 0) {
      let numStood = 0;
      while (numStood < numDrafts && random.uniform() < chance) numStood++;
      policy.noteDrafts(numDrafts, numStood);
    }
    const { depth } = policy;
    policy.noteStep(numDrafts, passMs(numDrafts), draftMs);
    numDrafts = depth;
    depths.push(depth);
  }
  return depths.slice(-200);
}

describe("the policy of drafts", () => {
  it("takes as many drafts as give most tokens in a time", () => {
    const passMs = (numDrafts: number): number => 10 + numDrafts / 2;
    for (const chance of [0.3, 0.6, 0.95]) {
      const policy = new DraftPolicy();
      const depths = run(policy, { chance, passMs, draftMs: 1 }, 2000);
      const rateOf = (count: number): number => {
        const tokens = Array.from({ length: count + 1 }, (_, index) => chance ** index);
        return tokens.reduce((sum, each) => sum + each, 0) / (passMs(count) + count);
      };
      const counts = Array.from({ length: DRAFTS_MAX }, (_, index) => index + 1);
      const best = Math.max(...counts.map(rateOf));
      const mean = depths.reduce((sum, depth) => sum + rateOf(depth), 0) / depths.length;
      assert.ok(mean > 0.95 * best, `chance ${chance}: ${mean} of ${best}`);
      assert.ok(policy.pays, `${chance}`);
      // Now and then it looks what a step costs without.
      assert.ok(depths.includes(0));
    }
  });

  it("does not pay where drafts seldom stand, cost too much, or slow the pass", () => {
    const cases: Readonly<Record<string, Simulated>> = {
      "seldom stand": { chance: 0.05, passMs: () => 10, draftMs: 1 },
      "cost too much": { chance: 0.9, passMs: () => 1, draftMs: 1.2 },
      "slow the pass": { chance: 0.6, passMs: (count) => 1 + count, draftMs: 0.1 },
    };
    for (const [name, simulated] of Object.entries(cases)) {
      const policy = new DraftPolicy();
      run(policy, simulated, 2000);
      assert.equal(policy.pays, false, name);
      const asked = Array.from({ length: 32 }, () => policy.admits());
      assert.equal(asked.filter(Boolean).length, 2, name);
    }
  });
});
