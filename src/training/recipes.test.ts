/** @file The recipes against the memory that a process has. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { predictMemory } from "../model/memory.ts";
import { PRESETS } from "../model/presets.ts";
import { RECIPES } from "./recipes.ts";

/** Of the 4 GiB that a process addresses, what the prediction may take; the rest is its error. */
const BUDGET_BYTES = 3.5 * 2 ** 30;
/** What a process takes before there is a model, about. */
const RUNTIME_BYTES = 128 * 2 ** 20;

for (const preset of PRESETS) {
  test(`a micro-batch of ${preset}, its state and its average fit into 3.5 GiB`, () => {
    const { model, recipe, batch, data, average } = RECIPES[preset];
    const step = predictMemory(model, recipe, batch.microBatch * data.sequenceLength);
    const averaged = average.decay > 0 ? step.values : 0;
    const bytes = step.total + averaged + RUNTIME_BYTES;
    assert.ok(bytes < BUDGET_BYTES, `${(bytes / 2 ** 30).toFixed(2)} GiB`);
  });
}
