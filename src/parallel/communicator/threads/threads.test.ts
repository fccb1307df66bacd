/**
 * @file The conformance suite on threads, and what becomes of the others when a rank goes wrong.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../../../base/errors.ts";
import { CASE_NAMES } from "../conformance-ranks.fixture.ts";
import type { Fault } from "./faulty-ranks.fixture.ts";
import { runOnThreads, runToEnds } from "./run-on-threads.ts";

const CONFORMANCE = new URL("../conformance-ranks.fixture.ts", import.meta.url);
const FAULTY = new URL("./faulty-ranks.fixture.ts", import.meta.url);

for (const numRanks of [1, 2, 5]) {
  test(`${numRanks} ranks on threads pass every case of the conformance suite`, async () => {
    const found = (await runOnThreads({ numRanks, program: CONFORMANCE })) as Record<
      string,
      string
    >[];
    for (const name of CASE_NAMES) {
      for (const [rank, problems] of found.entries()) {
        assert.equal(problems[name], "", `rank ${rank} of ${numRanks}: ${name}`);
      }
    }
  });
}

const FAULTS: readonly (readonly [fault: Fault, what: string, message: RegExp])[] = [
  ["throws", "throws", /rank 1 failed: broken on purpose/],
  ["early", "throws before it joins", /rank 1 failed: broken before joining/],
  ["exits", "ends its thread", /rank 1 was lost: its thread ended early, with code 3/],
  ["hangs", "hangs", /rank 1 has shown no sign of life for 0\.5 s/],
  ["mismatch", "sends another number of bytes", /rank 1 sent 16 bytes where rank 0 expects 32/],
];

for (const [fault, what, message] of FAULTS) {
  test(`when a rank ${what}, every rank ends, and the error says which and why`, async () => {
    const run = { numRanks: 3, program: FAULTY, input: fault, watchdogMs: 500 };
    const { ends, failure } = await runToEnds(run);
    assert.match(failure?.message ?? "", message);
    assert.ok(ends.every(({ ok }) => !ok));
    await assert.rejects(runOnThreads(run), (error) => {
      return error instanceof OperationalError && message.test(error.message);
    });
  });
}

test("a rank that takes longer than the watchdog allows, but ticks, is left alone", async () => {
  const run = { numRanks: 2, program: FAULTY, input: "slow", watchdogMs: 400 };
  assert.deepEqual(await runOnThreads(run), ["ended well", "ended well"]);
});

test("a rank that does nothing is left alone by those who ask for its process", async () => {
  const run = { numRanks: 2, program: FAULTY, input: "idle", watchdogMs: 400 };
  assert.deepEqual(await runOnThreads(run), ["ended well", "ended well"]);
});
