/** @file The comparison of losses on curves whose answer is known. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { compareLosses, smooth } from "./compare-losses.ts";

test("smoothing starts at the first loss and weights the newest by a tenth", () => {
  const [first, second] = smooth([2, 4]);
  assert.equal(first, 2);
  assert.ok(Math.abs(second! - 2.2) < 1e-12);
});

test("a curve that lies one percent above has that error throughout", () => {
  const baseline = Array.from({ length: 100 }, (_, step) => 5 / (1 + step / 50));
  const comparison = compareLosses(
    baseline.map((loss) => 1.01 * loss),
    baseline,
  );
  for (const error of comparison.errors) assert.ok(Math.abs(error - 0.01) < 1e-12);
  assert.ok(Math.abs(comparison.mean - 0.01) < 1e-12);
});

test("the first tenth does not count, and errors below count as those above", () => {
  const baseline = new Array<number>(100).fill(1);
  const early = baseline.map((loss, step) => (step === 0 ? 2 * loss : loss));
  assert.ok(compareLosses(early, baseline).largest < 0.4);
  const below = compareLosses(new Array<number>(100).fill(0.98), baseline);
  assert.ok(Math.abs(below.largest - 0.02) < 1e-12);
  assert.ok(below.last < 0);
});
