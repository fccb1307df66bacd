/**
 * @file Tokens reach their experts once, results add up, and the bytes are those of the formula.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../../base/random.ts";
import { runOnThreads } from "../../communicator/threads/run-on-threads.ts";
import type { ExchangeInput, ExchangeReport } from "./exchange-ranks.fixture.ts";
import { bytesAcrossHosts, crossingBytes } from "./topology.ts";

const PROGRAM = new URL("./exchange-ranks.fixture.ts", import.meta.url);

const NUM_CHOSEN = 3;
/** What the published formula leaves out: where the token goes. */
const CHOICE_BYTES = 4 * NUM_CHOSEN;

const SHAPES: readonly (readonly [numHosts: number, ranksPerHost: number])[] = [
  [1, 1],
  [1, 3],
  [3, 1],
  [2, 2],
  [2, 3],
];

/** Runs ranks that exchange tokens, and holds them against the formula of bytes. */
async function exchangeOn(
  [numHosts, ranksPerHost]: (typeof SHAPES)[number],
  tokens: Pick<ExchangeInput, "seed" | "tokensOfRank" | "source">,
): Promise<void> {
  const numRanks = numHosts * ranksPerHost;
  const shape = { ranksPerHost, expertsPerRank: 3, numChosen: NUM_CHOSEN, hiddenDim: 256 };
  const input: ExchangeInput = { ...shape, ...tokens };
  const run = { numRanks, program: PROGRAM, input, watchdogMs: 60_000 };
  const reports = (await runOnThreads(run)) as ExchangeReport[];
  for (const [rank, { problems, chunkRows, dispatched, remoteHosts }] of reports.entries()) {
    assert.deepEqual(problems, [], `seed ${tokens.seed}, rank ${rank}`);
    assert.deepEqual(chunkRows, { rail: 32, host: 32 }, "the candidate that was fastest");
    const again = 256;
    const perCrossing = crossingBytes(256).dispatch + CHOICE_BYTES + again;
    assert.equal(dispatched.acrossHosts, remoteHosts * perCrossing);
  }
  const total = (pick: (report: ExchangeReport) => number): number =>
    reports.reduce((sum, report) => sum + pick(report), 0);
  const crossings = total(({ remoteHosts }) => remoteHosts);
  const expected = bytesAcrossHosts(1, crossings, 256);
  assert.equal(
    total(({ combined }) => combined.acrossHosts),
    expected.combine,
  );
  if (ranksPerHost > 1) return;
  assert.equal(
    total(({ dispatched }) => dispatched.withinHost),
    0,
  );
}

for (const shape of SHAPES) {
  const [numHosts, ranksPerHost] = shape;
  const numRanks = numHosts * ranksPerHost;
  const seed = 40 + numRanks;
  test(`${numHosts} hosts of ${ranksPerHost} ranks exchange ragged numbers of tokens`, async () => {
    const random = new Random(seed);
    // Rank 0 has none: it takes part all the same.
    const tokensOfRank = Array.from({ length: numRanks }, (_, rank) =>
      rank === 0 && numRanks > 1 ? 0 : 1 + random.below(60),
    );
    await exchangeOn(shape, { seed, tokensOfRank });
  });
  test(`${numHosts} hosts of ${ranksPerHost} ranks take tokens of one rank`, async () => {
    const source = numRanks - 1;
    const tokensOfRank = Array.from({ length: numRanks }, (_, rank) => (rank === source ? 47 : 0));
    await exchangeOn(shape, { seed, tokensOfRank, source });
  });
}

test("a layer of DeepSeek-V3 takes the published 6.2 ms of a 50 GB/s link, forward", () => {
  const { dispatch, combine } = bytesAcrossHosts(4096, 3.5, 7168);
  assert.deepEqual(crossingBytes(7168), { dispatch: 7168 + 224, combine: 14336 });
  assert.equal(((dispatch + combine) / 50e9).toFixed(4), "0.0062");
});
