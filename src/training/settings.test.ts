/**
 * @file Settings from presets, files and assignments, and the words a wrong one is refused with.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { PRESETS } from "../model/presets.ts";
import { RECIPES } from "./recipes.ts";
import { budgetOf, resolveSettings } from "./settings.ts";

const refusedWith = (pattern: RegExp) => (error: unknown) =>
  error instanceof OperationalError && pattern.test(error.message);

const set = (...assignments: string[]) => resolveSettings({ preset: "tiny", assignments });
const file = (value: unknown) =>
  resolveSettings({ preset: "tiny", changes: { value, origin: "my.json" } });

test("every preset is valid, and its own config file changes nothing", () => {
  for (const preset of PRESETS) {
    const settings = resolveSettings({ preset });
    const changes = { value: JSON.parse(JSON.stringify(settings)), origin: "config.json" };
    assert.deepEqual(resolveSettings({ preset: "tiny", changes }), RECIPES[preset]);
  }
});

test("assignments come last and reach every depth", () => {
  const settings = resolveSettings({
    preset: "tiny",
    changes: { value: { seed: 5, learningRate: { peak: 1 } }, origin: "my.json" },
    assignments: ["learningRate.peak=0.002", "model.numRoutedExperts=32", "optimizer.name=muon"],
  });
  assert.equal(settings.seed, 5);
  assert.equal(settings.learningRate.peak, 0.002);
  assert.equal(settings.learningRate.shape, "wsd");
  assert.equal(settings.model.numRoutedExperts, 32);
  assert.equal(settings.optimizer.name, "muon");
  assert.deepEqual(set('data.paths=["a","b"]').data.paths, ["a", "b"]);
  assert.equal(set("model.qLoraRank=null").model.qLoraRank, null);
});

test("an unknown name is refused with the nearest one", () => {
  assert.throws(
    () => set("learningRate.peek=1"),
    refusedWith(/no setting learningRate\.peek; did you mean learningRate\.peak\?/),
  );
  assert.throws(
    () => file({ model: { numRoutedExpets: 4 } }),
    refusedWith(
      /my\.json: there is no setting model\.numRoutedExpets; did you mean model\.numRoutedExperts/,
    ),
  );
  assert.throws(() => set("zzzzzzzz=1"), refusedWith(/known: seed, model, recipe/));
  assert.throws(() => set("constructor=1"), refusedWith(/no setting constructor/));
  assert.throws(() => file(JSON.parse('{"__proto__": {"seed": 3}}')), refusedWith(/no setting/));
});

test("a value of the wrong kind or beyond its range is refused with what is allowed", () => {
  assert.throws(
    () => set("learningRate.shape=v4"),
    refusedWith(/--set: learningRate\.shape \("v4"\) must be v3, wsd, cosine, constant/),
  );
  assert.throws(() => set("seed=-1"), refusedWith(/seed \(-1\) must be a whole number >= 0/));
  assert.throws(() => set("loss.zLoss=much"), refusedWith(/must be a number >= 0/));
  assert.throws(() => set("model=3"), refusedWith(/model \(3\) must be an object/));
  assert.throws(() => set("seed"), refusedWith(/must be KEY=VALUE/));
  assert.throws(() => file([1]), refusedWith(/must be an object/));
  assert.throws(
    () => set('model.ropeScaling={"type":"yarn","factor":4}'),
    refusedWith(/an object with type, factor/),
  );
});

test("settings that contradict each other are refused", () => {
  assert.throws(() => set("batch.microBatch=5"), refusedWith(/microBatch \(5\) must divide/));
  assert.throws(() => set("budget.steps=5", "budget.tokens=7"), refusedWith(/only one of/));
  assert.throws(() => set("data.sequenceLength=1025"), refusedWith(/maxPositionEmbeddings/));
  assert.throws(() => set("model.numExpertGroups=3"), refusedWith(/must divide numRoutedExperts/));
});

test("the budget is the one field that is set", () => {
  assert.equal(budgetOf(set()), undefined);
  assert.deepEqual(budgetOf(set("budget.minutes=2.5")), { minutes: 2.5 });
});
