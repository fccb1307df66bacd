/** @file An engine over ranks that share the experts says what one engine says, or why it ended. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine, EngineEvent, EngineRequest } from "../../inference/engine/api.ts";
import { TINY_CHAT } from "../test-support.ts";
import { requestOf } from "./engine-request.fixture.ts";
import { openExpertEngine } from "./expert-engine.ts";
import { type EngineSettings, openEngine, openEngineHere } from "./open-engine.ts";

const ENV = { HADAL_THREADS: "2" };

function over(numRanks: number, others: Partial<EngineSettings> = {}): EngineSettings {
  const experts = { numRanks, numRedundant: 4, rebalanceTokens: 100 };
  return { prefixFolder: null, role: "both", experts, ...others };
}

/** Prompts with a common beginning, one after another and then at once, drafting and not. */
async function collectAll(engine: Engine) {
  const text = "The owl is green. The fox is red. The owl sees the fox. ".repeat(14);
  const requests = [
    requestOf(engine, text, { sampling: { temperature: 0, topK: 0, topP: 1, minP: 0 } }),
    requestOf(engine, `${text} What colour`, { draft: "auto" }),
    requestOf(engine, "What", { promptLogProbabilities: true }),
    requestOf(engine, `The cat. ${text}`),
  ];
  const first = await collect(engine, requests[1]!);
  const other = await collect(engine, requests[3]!);
  const atOnce = await Promise.all(requests.map((request) => collect(engine, request)));
  return [first, other, ...atOnce];
}

async function collect(engine: Engine, request: EngineRequest) {
  const said: unknown[] = [];
  let cachedTokens = 0;
  for await (const event of engine.generate(request, new AbortController().signal)) {
    if (event.kind === "tokens") said.push(...event.logProbabilities!);
    if (event.kind === "prompt") said.push(event.logProbabilities);
    if (event.kind === "finished") cachedTokens = cachedTokensOf(event);
  }
  return { said, cachedTokens };
}

function cachedTokensOf({ usage }: Extract<EngineEvent, { kind: "finished" }>): number {
  return usage.cachedTokens;
}

describe("an engine over expert ranks", () => {
  for (const weights of ["f32", undefined, "fp8", "int4:a"]) {
    test(`gives tokens and probabilities of one engine: ${weights ?? "as stored"}`, async () => {
      const one = await openEngineHere(TINY_CHAT, ENV, { weights });
      const expected = await collectAll(one);
      assert.ok(expected[2]!.cachedTokens >= 64);
      const hash = one.description.modelHash;
      await one.close();
      const engine = await openEngine(TINY_CHAT, ENV, over(2, { weights }));
      const collected = await collectAll(engine);
      const metrics = await engine.metrics();
      await engine.close();
      await assert.rejects(collect(engine, requestOf(engine, "A")), { code: "engine.closed" });
      assert.deepEqual(collected, expected);
      assert.notEqual(engine.description.modelHash, hash);
      const valuesOf = (wanted: string): number[] =>
        metrics.flatMap((metric) =>
          metric.name === wanted && metric.kind !== "histogram" ? [metric.value] : [],
        );
      assert.ok(Math.min(...valuesOf("expert_load_max_over_mean")) > 1);
      assert.ok(valuesOf("expert_moves_total")[0]! > 0);
      // Long prompts are read in both ways, to see which is faster.
      assert.ok(Math.min(...valuesOf("expert_passes_total")) > 0);
    });
  }

  test("ends when a rank dies: what ran fails and what comes is told why", async () => {
    const origin = { path: TINY_CHAT, env: ENV, prefixFolder: null };
    const program = new URL("./mortal-rank.fixture.ts", import.meta.url);
    const engine = await openExpertEngine(
      origin,
      { numRanks: 2, numRedundant: 0, rebalanceTokens: 0 },
      program,
    );
    await assert.rejects(collect(engine, requestOf(engine, "What")), { code: "engine.closed" });
    const message = /rank 1 failed: struck by lightning/;
    await assert.rejects(engine.metrics(), { code: "engine.closed", message });
    await engine.close();
  });

  test("refuses ranks that were given different things", async () => {
    const origin = { path: TINY_CHAT, env: ENV, prefixFolder: null };
    const program = new URL("./unlike-rank.fixture.ts", import.meta.url);
    const settings = { numRanks: 2, numRedundant: 0, rebalanceTokens: 0 };
    await assert.rejects(openExpertEngine(origin, settings, program), {
      message: /the ranks have different models, flags or numbers of ranks on their hosts/,
    });
  });

  test("refuses ranks that do not divide the experts, and says what would", async () => {
    await assert.rejects(openEngine(TINY_CHAT, ENV, over(7)), {
      code: "parallel.experts",
      message: /and 4 redundant experts do not divide over 7 expert ranks; take 1, 2/,
    });
  });

  test("that cannot be opened says why", async () => {
    const opening = openEngine(TINY_CHAT, ENV, over(2, { weights: "int3" }));
    await assert.rejects(opening, { code: "usage.weights" });
  });
});
