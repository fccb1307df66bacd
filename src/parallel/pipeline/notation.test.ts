/** @file Schedules written and read back, and what is refused on reading. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../../base/errors.ts";
import { formatCsv, formatText, parseSchedule, parseScheduleJson } from "./notation.ts";
import { makeSchedule, SCHEDULE_KINDS } from "./schedules/kinds.ts";
import type { Schedule } from "./schedules/schedule.ts";

function make(kind: (typeof SCHEDULE_KINDS)[number], numMicroBatches = 8): Schedule {
  return makeSchedule(kind, { numRanks: 4, numMicroBatches, numStagesPerRank: 2 });
}

for (const kind of SCHEDULE_KINDS) {
  test(`${kind} survives text, CSV and JSON`, () => {
    const schedule = make(kind);
    const { layout, ranks } = schedule;
    assert.deepEqual(parseSchedule(formatText(schedule), layout), schedule);
    assert.deepEqual(parseSchedule(formatCsv(schedule), layout), schedule);
    assert.deepEqual(parseScheduleJson(JSON.parse(JSON.stringify(ranks)), layout), schedule);
  });
}

test("the notation is the field's", () => {
  const [first] = formatText(make("dualpipe")).split("\n");
  assert.match(first!, /^F0 F1 F2 F4 I4 W4 F5 /);
  assert.match(first!, / B5&F3 /);
  assert.match(formatText(make("dualpipev")), /^0F0 0F1 0F2 0F3 0F4 0F5 0F6 7F0 7I0 7W0 7F1 /);
  assert.match(formatCsv(make("dualpipe")), /,\(0F3;3B5\)OVERLAP_F_B,/);
});

const REFUSED: readonly (readonly [name: string, text: string, message: RegExp])[] = [
  ["a word of another language", "F0 X1\nF0\n", /"X1" on rank 0: an action looks like/],
  ["a number too large to be one", "F0 F99999999\nF0\n", /an action looks like/],
  ["a micro-batch that does not exist", "F0 F7\nF0\n", /"F7" on rank 0: the stage is not clear/],
  ["a stage that does not exist", "5F0\nF0\n", /rank 0: there is no 5F0/],
  ["a stage of another rank", "1F0\nF0\n", /1F0 belongs to rank 1/],
  [
    "a missing backward",
    "F0 F1 B0\nF0 F1 B0 B1\n",
    /stage 0, micro-batch 1: 1 F, 0 B, 0 I and 0 W/,
  ],
  ["an I without its W", "F0 F1 B0 I1\nF0 F1 B0 B1\n", /1 F, 0 B, 1 I and 0 W/],
  ["a backward before its forward", "B0 F0 F1 B1\nF0 F1 B0 B1\n", /waits for ever/],
  ["ranks that wait for each other", "F0 B0 F1 B1\nF0 F1 B0 B1\n", /waits for ever/],
  ["messages in another order", "F1 F0 B0 B1\nF0 F1 B0 B1\n", /sent 1,0, wanted 0,1/],
  ["two forwards as a pair", "F0&F1\nF0\n", /a pair is one F and one B/],
  ["a row too many", "F0 F1 B0 B1\nF0 F1 B0 B1\nF0\n", /"F0" on rank 2/],
  ["nothing", "", /1 rows for 2 ranks/],
];

for (const [name, text, message] of REFUSED) {
  test(`reading refuses ${name}`, () => {
    const { layout } = makeSchedule("1f1b", {
      numRanks: 2,
      numMicroBatches: 2,
      numStagesPerRank: 1,
    });
    assert.throws(
      () => parseSchedule(text, layout),
      (error) => error instanceof OperationalError && message.test(error.message),
    );
  });
}

test("JSON that is no schedule is refused", () => {
  const { layout } = make("1f1b");
  for (const value of [null, {}, [1], [[null]], [[{ kind: "F" }]], [[{ kind: "F&B" }]], []]) {
    assert.throws(() => parseScheduleJson(value, layout), OperationalError);
  }
});

test("a size that a schedule does not admit is refused with what it admits", () => {
  const size = { numRanks: 8, numMicroBatches: 15, numStagesPerRank: 1 };
  assert.throws(
    () => makeSchedule("dualpipe", size),
    /even number, at least twice the ranks \(16\)/,
  );
  assert.throws(
    () => makeSchedule("dualpipe", { ...size, numRanks: 7 }),
    /over a pipeline of 7 ranks with 15 micro-batches: the number of ranks must be even; 1f1b/,
  );
  assert.throws(
    () => makeSchedule("dualpipe", { ...size, numRanks: 1 }),
    /over a pipeline of 1 rank with/,
  );
  assert.throws(() => makeSchedule("dualpipev", size), /at least twice the ranks \(16\)/);
  assert.throws(() => makeSchedule("interleaved", size), /a multiple of the ranks/);
});
