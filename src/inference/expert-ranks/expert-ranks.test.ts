/** @file Decoding over ranks that share the experts: the bits are those of one process. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import type { EngineMetric } from "../engine/api.ts";
import { type Decoded, type DecodingCase, decode } from "./decoding-ranks.fixture.ts";

const PROGRAM = new URL("./decoding-ranks.fixture.ts", import.meta.url);

async function decodeOnRanks(
  numRanks: number,
  cases: readonly DecodingCase[],
): Promise<readonly Decoded[]> {
  const reports = await runOnThreads({ numRanks, program: PROGRAM, input: cases });
  for (const report of reports.slice(1))
    assert.deepEqual(
      report,
      cases.map(() => null),
    );
  return reports[0] as readonly Decoded[];
}

/** Holds ranks against one process; returns what was counted of the ranks in each case. */
async function assertAlike(
  numRanks: number,
  cases: readonly DecodingCase[],
): Promise<readonly (readonly EngineMetric[])[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const decoded = await decodeOnRanks(numRanks, cases);
  return cases.map((one, index) => {
    const { metrics, ...found } = decoded[index]!;
    const { metrics: none, ...expected } = decode(device, one);
    assert.deepEqual(none, []);
    assert.deepEqual(found, expected, JSON.stringify({ numRanks, ...one }));
    return metrics;
  });
}

/** The values of a metric, in the order of layers and ranks. */
function valuesOf(metrics: readonly EngineMetric[], name: string): number[] {
  return metrics.flatMap((metric) =>
    metric.name === name && metric.kind !== "histogram" ? [metric.value] : [],
  );
}

const PLAIN: DecodingCase = {
  precision: "f32",
  numRedundant: 0,
  ranksPerHost: 2,
  isSkewed: false,
  rebalanceTokens: 0,
};

describe("decoding over expert ranks", () => {
  it("gives the bits of one process on two ranks, with copies and without", async () => {
    await assertAlike(2, [
      PLAIN,
      { ...PLAIN, precision: "bf16" },
      { ...PLAIN, numRedundant: 4 },
      { ...PLAIN, isSkewed: true },
      { ...PLAIN, ranksPerHost: 1, numRedundant: 2, precision: "bf16", isSkewed: true },
    ]);
  });

  it("gives them while experts move, and their load is borne more evenly", async () => {
    const skewed = { ...PLAIN, isSkewed: true };
    const cases: readonly DecodingCase[] = [
      { ...skewed, numRedundant: 4 },
      { ...skewed, numRedundant: 4, rebalanceTokens: 6 },
      { ...skewed, precision: "bf16", rebalanceTokens: 6 },
    ];
    const [never, often, bare] = await assertAlike(2, cases);
    const busiest = (metrics: readonly EngineMetric[]): number =>
      Math.max(...valuesOf(metrics, "expert_rank_load_over_mean"));
    assert.deepEqual(valuesOf(never!, "expert_moves_total"), [0]);
    for (const metrics of [often!, bare!]) {
      assert.deepEqual(valuesOf(metrics, "expert_rebalance_interval_tokens"), [6]);
      assert.ok(valuesOf(metrics, "expert_rebalances_total")[0]! >= 2);
      assert.ok(valuesOf(metrics, "expert_moves_total")[0]! > 0);
      assert.ok(valuesOf(metrics, "expert_rebalance_seconds_total")[0]! > 0);
    }
    assert.ok(busiest(often!) < busiest(never!), `${busiest(often!)} and ${busiest(never!)}`);
    assert.equal(valuesOf(often!, "expert_rank_load_over_mean").length, 2 * 2);
  });

  it("gives them on four ranks of two hosts, some without a token", async () => {
    await assertAlike(4, [
      { ...PLAIN, isSkewed: true },
      { ...PLAIN, numRedundant: 8 },
    ]);
  });
});
