/** @file Two engines, one for prompts and one for decoding, say what one engine says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TINY_CHAT } from "../test-support.ts";
import { openEngine, openEngineHere } from "./open-engine.ts";
import { collectAll, randomRequests } from "./random-requests.fixture.ts";

const ENV = { HADAL_THREADS: "2" };
const SEED = 23;

test("a split engine gives the tokens of one engine, and counts by role", async () => {
  const requests = randomRequests(SEED, 10);
  const one = await openEngineHere(TINY_CHAT, ENV);
  const expected = await collectAll(one, requests);
  await one.close();
  const split = await openEngine(TINY_CHAT, ENV, { prefixFolder: null, role: "split" });
  assert.deepEqual(await collectAll(split, requests), expected, `seed ${SEED}`);
  const metrics = await split.metrics();
  const ofRole = (role: string): number => {
    const metric = metrics.find(
      ({ name, labels }) => name === "prompt_tokens_total" && labels["role"] === role,
    );
    assert.ok(metric?.kind === "counter", role);
    return metric.value;
  };
  assert.ok(ofRole("prefill") > 64 * 5, `${ofRole("prefill")}`);
  assert.ok(ofRole("decode") > 0);
  const ups = metrics.filter(({ name }) => name === "engine_role_up");
  assert.deepEqual(
    ups.map((metric) => metric.kind === "gauge" && [metric.labels["role"], metric.value]),
    [
      ["prefill", 1],
      ["decode", 1],
    ],
  );
  await split.close();
});

test("a split engine that cannot be opened says why", async () => {
  const opening = openEngine("/nowhere/at/all", ENV, { prefixFolder: null, role: "split" });
  await assert.rejects(opening, { name: "OperationalError" });
});
