/**
 * @file Serving with the routed experts on two ranks, measured beside one engine with the same
 * threads: tokens generated a second, the busiest rank's load over the mean, what moving experts
 * costs.
 *
 *     node bin/node24.js bench/expert-serving.ts [checkpoint] [redundant experts] [tokens between]
 */
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Engine, EngineMetric, EngineRequest } from "../src/inference/engine/api.ts";
import type { ExpertSettings } from "../src/serving/models/expert-engine.ts";
import { openEngine } from "../src/serving/models/open-engine.ts";

const TINY_CHAT = fileURLToPath(new URL("../test/fixtures/tiny-chat", import.meta.url));
const [path = TINY_CHAT, numRedundant = "4", rebalanceTokens = "500"] = process.argv.slice(2);
const NEVER = new AbortController().signal;
const ROUNDS = 3;

function requestOf(engine: Engine, seed: number, maxTokens: number): EngineRequest {
  const { vocabSize } = engine.description;
  return {
    prompt: Int32Array.from(
      { length: 20 },
      (_, index) => (20 + 7 * index + 131 * seed) % vocabSize,
    ),
    ...{ maxTokens, adjustments: null, seed, stopStrings: [], endTokens: [], tenant: "" },
    sampling: { temperature: 0, topK: 0, topP: 1, minP: 0 },
    ...{ topLogProbabilities: null, promptLogProbabilities: false },
    ...{ constraint: null, deadlineMs: null, draft: "off" },
  };
}

/** Tokens a second of so many streams together. */
async function speedOf(engine: Engine, numStreams: number): Promise<number> {
  const maxTokens = 200;
  const start = performance.now();
  await Promise.all(
    Array.from({ length: numStreams }, async (_, seed) => {
      for await (const event of engine.generate(requestOf(engine, seed, maxTokens), NEVER)) {
        if (event.kind === "finished") return;
      }
    }),
  );
  return (1000 * numStreams * maxTokens) / (performance.now() - start);
}

function valuesOf(metrics: readonly EngineMetric[], wanted: string): number[] {
  return metrics.flatMap((metric) =>
    metric.name === wanted && metric.kind !== "histogram" ? [metric.value] : [],
  );
}

async function measure(name: string, experts: ExpertSettings | undefined): Promise<void> {
  const settings = { prefixFolder: null, role: "both", experts } as const;
  const engine = await openEngine(path, process.env, settings);
  await speedOf(engine, 8);
  const best = async (numStreams: number): Promise<number> => {
    let most = 0;
    for (let round = 0; round < ROUNDS; round++) {
      most = Math.max(most, await speedOf(engine, numStreams));
    }
    return most;
  };
  const speeds = [await best(1), await best(8)].map((speed) => speed.toFixed(0).padStart(6));
  const metrics = await engine.metrics();
  await engine.close();
  process.stdout.write(`${name.padEnd(23)} ${speeds[0]} tokens/s alone, ${speeds[1]} of eight`);
  if (experts !== undefined) {
    const busiest = Math.max(...valuesOf(metrics, "expert_rank_load_over_mean"));
    const [count = 0] = valuesOf(metrics, "expert_rebalances_total");
    const [moves = 0] = valuesOf(metrics, "expert_moves_total");
    const [seconds = 0] = valuesOf(metrics, "expert_rebalance_seconds_total");
    process.stdout.write(`; busiest rank ${busiest.toFixed(2)} of the mean`);
    if (count > 0) {
      const each = ((1000 * seconds) / count).toFixed(2);
      process.stdout.write(`; placed anew ${count} times, ${moves} moves, ${each} ms each time`);
    }
  }
  process.stdout.write("\n");
}

const redundant = { numRanks: 2, numRedundant: Number(numRedundant) };
await measure("one engine", undefined);
await measure("two ranks", { numRanks: 2, numRedundant: 0, rebalanceTokens: 0 });
await measure("two, copies", { ...redundant, rebalanceTokens: 0 });
await measure("two, copies that follow", {
  ...redundant,
  rebalanceTokens: Number(rebalanceTokens),
});
