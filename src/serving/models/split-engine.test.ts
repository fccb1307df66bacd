/** @file Two engines, one for prompts and one for decoding, say what one engine says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import type { Engine, EngineEvent, EngineRequest } from "../../inference/engine/api.ts";
import { TINY_CHAT } from "../test-support.ts";
import { openEngine, openEngineHere } from "./open-engine.ts";

const ENV = { HADAL_THREADS: "2" };
const SEED = 23;

/** Everything that is told of requests that run at once. */
function collectAll(engine: Engine, requests: readonly EngineRequest[]) {
  return Promise.all(
    requests.map(async (request) => {
      const said: unknown[] = [];
      let usage: unknown;
      for await (const event of engine.generate(request, new AbortController().signal)) {
        if (event.kind === "tokens") said.push(...event.logProbabilities!);
        if (event.kind === "prompt") said.push(event.logProbabilities);
        if (event.kind === "finished") usage = cachedTokensOf(event);
      }
      return { said, usage };
    }),
  );
}

function cachedTokensOf({ usage }: Extract<EngineEvent, { kind: "finished" }>): number {
  return usage.cachedTokens;
}

function randomRequests(count: number): EngineRequest[] {
  const random = new Random(SEED);
  const token = (): number => 20 + random.below(900);
  return Array.from({ length: count }, (_, seed) => ({
    prompt: Int32Array.from({ length: 1 + random.below(300) }, token),
    maxTokens: 1 + random.below(20),
    sampling: { temperature: random.below(2), topK: 0, topP: 1, minP: 0 },
    adjustments: null,
    seed,
    stopStrings: [],
    endTokens: [],
    topLogProbabilities: 1,
    promptLogProbabilities: seed % 5 === 4,
    constraint: null,
    tenant: `t${seed % 2}`,
    deadlineMs: null,
    draft: seed % 2 === 0 ? "auto" : "off",
  }));
}

test("a split engine gives the tokens of one engine, and counts by role", async () => {
  const requests = randomRequests(10);
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
