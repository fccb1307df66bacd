/** @file The published numbers of the schedules, and their shapes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { planFrom, progressAt, SpeedWatch, sequencesAt } from "./budget.ts";
import {
  type LearningRateSettings,
  learningRateAt,
  makeSchedule,
  switchedValueAt,
  V3_LEARNING_RATE,
} from "./schedule.ts";

const V3_TOKENS = 14.8e12;
const V3_RAMP = { sequences: 15360, rampFrom: 3072, rampTokens: 469e9, microBatch: 1, multiple: 1 };

function isClose(actual: number, expected: number, what: string): void {
  assert.ok(
    Math.abs(actual - expected) <= 1e-9 * Math.abs(expected),
    `${what}: ${actual} instead of ${expected}`,
  );
}

test("the V3 schedule has the published rates at the published tokens", () => {
  const schedule = makeSchedule(V3_LEARNING_RATE);
  const rate = (tokens: number, step = 10_000): number =>
    learningRateAt(schedule, { step, progress: tokens / V3_TOKENS });
  isClose(rate(0, 0), 2.2e-4 / 2000, "the first step");
  isClose(rate(6e9, 999), 1.1e-4, "half-way through the warm-up");
  isClose(rate(12e9, 1999), 2.2e-4, "the last step of the warm-up");
  isClose(rate(9.99e12), 2.2e-4, "before 10 T");
  isClose(rate(12.15e12), (2.2e-4 + 2.2e-5) / 2, "half-way down the cosine");
  isClose(rate(14.3001e12), 2.2e-5, "the first tail");
  isClose(rate(14.6329e12), 2.2e-5, "the end of the first tail");
  isClose(rate(14.6331e12), 7.3e-6, "the second tail");
  isClose(rate(14.8e12), 7.3e-6, "the end");
});

test("the V3 batch ramp takes about 235 thousand steps from 3072 to 15360 sequences", () => {
  assert.equal(sequencesAt(V3_RAMP, 0), 3072);
  assert.equal(sequencesAt(V3_RAMP, 234.5e9), 9216);
  assert.equal(sequencesAt(V3_RAMP, 469e9), 15360);
  const plan = planFrom({ step: 0, tokens: 0 }, { tokens: V3_TOKENS }, V3_RAMP, 4096);
  // 469e9 ÷ (12288·4096) · ln 5 steps of ramp, then 14.331e12 ÷ 62.9e6.
  assert.ok(Math.abs(plan.totalSteps - 242_780) < 30, `${plan.totalSteps} steps`);
  assert.ok(plan.totalTokens >= V3_TOKENS);
});

test("a batch is a whole number of micro-batches, and never empty", () => {
  const ramp = { sequences: 16, rampFrom: 1, rampTokens: 1000, microBatch: 4, multiple: 1 };
  for (let tokens = 0; tokens < 2000; tokens += 50) {
    const sequences = sequencesAt(ramp, tokens);
    assert.ok(sequences % 4 === 0 && sequences >= 4 && sequences <= 16, `${sequences} sequences`);
  }
  assert.equal(sequencesAt({ ...ramp, rampTokens: 0 }, 0), 16);
  assert.equal(sequencesAt({ ...ramp, microBatch: 2, multiple: 4 }, 900), 8);
});

const WSD: LearningRateSettings = {
  ...V3_LEARNING_RATE,
  shape: "wsd",
  peak: 1,
  warmupSteps: 10,
  finalFraction: 0,
  decayFraction: 0.2,
};

test("WSD is stable until its decay, which falls linearly or with 1 minus the root", () => {
  const linear = makeSchedule(WSD);
  const root = makeSchedule({ ...WSD, decayCurve: "sqrt" });
  const at = (schedule: typeof linear, progress: number): number =>
    learningRateAt(schedule, { step: 100, progress });
  assert.equal(at(linear, 0.79), 1);
  isClose(at(linear, 0.85), 0.75, "a quarter of the linear decay");
  isClose(at(root, 0.85), 0.5, "a quarter of the root decay");
  assert.equal(at(linear, 1), 0);
  assert.equal(at(root, 1), 0);
});

test("the cosine ends at its fraction and the constant never moves", () => {
  const cosine = makeSchedule({ ...WSD, shape: "cosine", finalFraction: 0.1 });
  isClose(learningRateAt(cosine, { step: 100, progress: 0.5 }), 0.55, "half-way");
  isClose(learningRateAt(cosine, { step: 100, progress: 1 }), 0.1, "the end");
  const constant = makeSchedule({ ...WSD, shape: "constant" });
  assert.equal(learningRateAt(constant, { step: 4, progress: 0 }), 0.5);
  assert.equal(learningRateAt(constant, { step: 99, progress: 0.999 }), 1);
});

test("a switched value changes at its boundary", () => {
  const weight = { first: 0.3, last: 0.1, switchAt: 10 / 14.8 };
  assert.equal(switchedValueAt(weight, 0.67), 0.3);
  assert.equal(switchedValueAt(weight, 10 / 14.8), 0.1);
  assert.equal(switchedValueAt({ ...weight, switchAt: 1 }, 0.9999), 0.3);
});

test("progress is 0 before the plan and the share of tokens after it", () => {
  const plan = { fixedAtStep: 5, totalSteps: 100, totalTokens: 1000 };
  assert.equal(progressAt(undefined, { step: 50, tokens: 500 }), 0);
  assert.equal(progressAt(plan, { step: 4, tokens: 40 }), 0);
  assert.equal(progressAt(plan, { step: 50, tokens: 500 }), 0.5);
  assert.equal(progressAt(plan, { step: 200, tokens: 2000 }), 1);
});

test("a budget in minutes is turned into tokens by the speed of the warm steps", () => {
  const watch = new SpeedWatch(1, { seconds: 0, tokens: 0 });
  for (let step = 0; step < 5; step++) {
    watch.observe(step < 2 ? 3 : 0.5, 100);
    assert.equal(watch.tokensLeft(15), undefined, "too few steps");
  }
  watch.observe(0.5, 100);
  assert.equal(watch.tokensLeft(11), undefined, "too short a time");
  // 60 s less 5 % less the 12 s gone, at 200 tokens a second.
  assert.equal(watch.tokensLeft(12), 9000);
  assert.equal(watch.tokensLeft(58), 0);
});

test("a run that gets more minutes plans them by the speed it had", () => {
  const watch = new SpeedWatch(2, { seconds: 60, tokens: 6000 });
  // 120 s less 5 % less the 60 s gone, at 100 tokens a second.
  assert.equal(watch.tokensLeft(60), 5400);
});
