/** @file Decoding over ranks that share the experts: the bits are those of one process. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
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
    const { metrics, events, ...found } = decoded[index]!;
    const { metrics: none, events: neither, ...expected } = decode(device, one);
    assert.deepEqual([none, neither], [[], []]);
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
  microBatchesMin: Number.POSITIVE_INFINITY,
};

const SEED = 23;

/** Sequences that come and go, in chunks that cross blocks of latents. */
function randomPasses(random: Random, numPasses: number): number[][] {
  return Array.from({ length: numPasses }, () => {
    const lengths = [0, 1, 2].map(() => [0, 1, 1 + random.below(6), 1 + random.below(30)]);
    const passes = lengths.map((each) => each[random.below(each.length)]!);
    return passes.some((length) => length > 0) ? passes : [1, 0, 0];
  });
}

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
      { ...PLAIN, isSkewed: true, microBatchesMin: 2 },
      {
        ...PLAIN,
        numRedundant: 8,
        microBatchesMin: 2,
        passes: [
          [60, 0, 0],
          [1, 30, 9],
        ],
      },
    ]);
  });
});

describe("recorded passes over expert ranks", () => {
  it("replay what does not follow from data, and give the bits of one process", async () => {
    const random = new Random(SEED, "decoding");
    const one: DecodingCase = { ...PLAIN, isSkewed: true };
    const cases = [
      one,
      { ...one, precision: "bf16" as const, numRedundant: 4, rebalanceTokens: 9 },
      { ...one, ranksPerHost: 1 },
    ].map((each) => {
      // Few shapes, in turns, whose tokens go to the ranks in all proportions.
      const shapes = [
        [1, 1, 1],
        [1, 0, 0],
        [1, 1, 0],
        [2, 1, 1],
      ];
      const passes = Array.from({ length: 40 }, () => shapes[random.below(shapes.length)]!);
      return { ...each, passes };
    });
    await assertAlike(2, cases);
  });

  it("launch attention the first two times alone, and experts every time", async () => {
    const one = { ...PLAIN, passes: Array.from({ length: 5 }, () => [1, 1]), isTraced: true };
    const [decoded] = await decodeOnRanks(2, [one]);
    const times = (wanted: string): number =>
      decoded!.events.filter((event) => event === wanted).length;
    // Three layers and an MTP module, of which three have experts: two products each.
    assert.equal(times("attention"), 2 * 4);
    assert.equal(times("experts"), 5 * 3 * 2);
  });
});

describe("two micro-batches over expert ranks", () => {
  it("change no bit of any sequence, whatever else is in a pass", async () => {
    const random = new Random(SEED, "passes");
    const two: DecodingCase = { ...PLAIN, microBatchesMin: 2 };
    const cases = [
      two,
      { ...two, precision: "bf16" as const, isSkewed: true },
      { ...two, numRedundant: 4, isSkewed: true, rebalanceTokens: 20 },
      { ...two, ranksPerHost: 1 },
      { ...two, microBatchesMin: 12 },
    ].map((one) => ({ ...one, passes: randomPasses(random, 8) }));
    const counted = await assertAlike(2, cases);
    for (const metrics of counted) {
      const [one, two] = valuesOf(metrics, "expert_passes_total");
      assert.ok(two! > 0 && one! + two! === 8, `${one} passes with one and ${two} with two`);
    }
  });

  it("cut one long prompt, whose second part reads latents of the first", async () => {
    const passes = [[130], [100], [1]];
    const long = { ...PLAIN, passes };
    await assertAlike(2, [
      { ...long, microBatchesMin: 2 },
      { ...long, precision: "bf16", microBatchesMin: 100 },
    ]);
  });

  it("alternate: while messages of one are on their way, the other computes", async () => {
    const one = { ...PLAIN, passes: [[20]], isTraced: true };
    const [alone, two] = await decodeOnRanks(2, [one, { ...one, microBatchesMin: 20 }]);
    const pass = (start: number): string[] => [
      ...["attention", `host ${start} goes`, `host ${start} is there`],
      ...["experts", `host ${start + 1} goes`, `host ${start + 1} is there`],
    ];
    // Two layers, then the MTP module, whose pass stays whole.
    assert.deepEqual(withoutRepeats(alone!.events), [0, 2, 4].flatMap(pass));
    assert.deepEqual(withoutRepeats(two!.events), [
      ...["attention", "host 0 goes", "attention", "host 1 goes"],
      ...["host 0 is there", "experts", "host 2 goes"],
      ...["host 1 is there", "experts", "host 3 goes"],
      ...["host 2 is there", "attention", "host 4 goes"],
      ...["host 3 is there", "attention", "host 5 goes"],
      ...["host 4 is there", "experts", "host 6 goes"],
      ...["host 5 is there", "experts", "host 7 goes"],
      ...["host 6 is there", "host 7 is there"],
      ...pass(8),
    ]);
  });
});

describe("a rank that fails between two micro-batches", () => {
  for (const failsAfter of [0, 1, 2, 3]) {
    it(`ends all, who say why: after ${failsAfter} exchanges`, async () => {
      const one = { ...PLAIN, microBatchesMin: 2, passes: [[20]], failsAfter };
      await assert.rejects(decodeOnRanks(2, [one]), {
        code: "parallel.rankFailed",
        message: "rank 1 failed: struck by lightning",
      });
    });
  }
});

function withoutRepeats(events: readonly string[]): string[] {
  return events.filter((event, index) => event !== events[index - 1]);
}
