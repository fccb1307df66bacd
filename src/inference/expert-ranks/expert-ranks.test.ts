/** @file Decoding over ranks that share the experts: the bits are those of one process. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
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

async function assertAlike(numRanks: number, cases: readonly DecodingCase[]): Promise<void> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const decoded = await decodeOnRanks(numRanks, cases);
  for (const [index, one] of cases.entries()) {
    assert.deepEqual(decoded[index], decode(device, one), JSON.stringify({ numRanks, ...one }));
  }
}

const PLAIN: DecodingCase = {
  precision: "f32",
  numRedundant: 0,
  ranksPerHost: 2,
  isSkewed: false,
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

  it("gives them on four ranks of two hosts, some without a token", async () => {
    await assertAlike(4, [
      { ...PLAIN, isSkewed: true },
      { ...PLAIN, numRedundant: 8 },
    ]);
  });
});
