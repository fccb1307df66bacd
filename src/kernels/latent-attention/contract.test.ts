/** @file How the query rows of a launch are divided into tiles. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { planLatentTiles } from "./contract.ts";

/** Rows of each tile, sequence by sequence. */
function rowsOf(counts: readonly number[], numHeads: number, numThreads: number): number[][] {
  let firstToken = 0;
  const sequences = counts.map((count) => {
    const sequence = { firstToken, count, position: 100 };
    firstToken += count;
    return sequence;
  });
  const plan = planLatentTiles(sequences, { numHeads, numThreads });
  const rows: number[][] = counts.map(() => []);
  for (let at = 0; at < plan.length; at += 4) rows[plan[at + 2]!]!.push(plan[at + 1]!);
  return rows;
}

describe("the tiles of a launch", () => {
  it("divide each sequence's rows among the threads, in vectors of 16", () => {
    assert.deepEqual(rowsOf([1, 1, 1, 1, 2], 8, 2), [[8], [8], [8], [8], [16]]);
    assert.deepEqual(rowsOf([1, 1, 1, 1, 4], 8, 2), [[8], [8], [8], [8], [16, 16]]);
    assert.deepEqual(rowsOf([1, 6], 8, 2), [[8], [32, 16]]);
    assert.deepEqual(rowsOf([1, 32], 8, 2), [[8], [64, 64, 64, 64]]);
  });

  it("divide a single token's rows too", () => {
    assert.deepEqual(rowsOf([1], 8, 2), [[4, 4]]);
    assert.deepEqual(rowsOf([1], 3, 8), [[1, 1, 1]]);
  });
});
