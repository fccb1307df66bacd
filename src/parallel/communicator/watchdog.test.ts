/** @file Whom the watchdog gives up, by a clock of the test's own. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Judged } from "./communicator.ts";
import { Watchdog } from "./watchdog.ts";

const LIMIT_MS = 7000;
const STEP_MS = 50;

/** What rank 1 shows at a time; rank 0 is well. */
interface Course {
  readonly beats: (ms: number) => number;
  readonly signs: (ms: number) => number;
  readonly heldUpMs?: (ms: number) => number;
  readonly judged?: Judged;
  /** When the waiting rank looks. */
  readonly looks?: (ms: number) => boolean;
}

/** When rank 1 is given up and why; null: not within two minutes. */
function givenUp({
  beats,
  signs,
  heldUpMs = () => 0,
  judged = "ranks",
  looks = () => true,
}: Course) {
  const watchdog = new Watchdog(2, LIMIT_MS);
  for (let ms = 0; ms < 120_000; ms += STEP_MS) {
    if (!looks(ms)) continue;
    const of = (value: number) => (rank: number) => (rank === 1 ? value : ms);
    const vitals = { beats: of(beats(ms)), signs: of(signs(ms)), heldUpMs: of(heldUpMs(ms)) };
    const problem = watchdog.look(vitals, judged, ms);
    if (problem !== null) return { atMs: ms, problem };
  }
  return null;
}

const goesOn = (ms: number): number => ms;
const until = (endMs: number) => (ms: number) => Math.min(ms, endMs);

test("a rank that shows both its beats and signs of life is kept", () => {
  assert.equal(givenUp({ beats: goesOn, signs: goesOn }), null);
  const seldom = (ms: number): number => Math.floor(ms / 6900);
  assert.equal(givenUp({ beats: seldom, signs: seldom }), null);
});

test("a process without beats is given up, whatever is judged, and is told from a program", () => {
  for (const judged of ["processes", "ranks"] as const) {
    const end = givenUp({ beats: until(3000), signs: until(3000), judged });
    assert.equal(end?.atMs, 3000 + LIMIT_MS + STEP_MS);
    assert.match(end.problem, /^nothing was heard of rank 1 for 7 s; its process was killed or/);
  }
});

test("a program without signs of life is given up where ranks are judged, and only there", () => {
  const hangs = { beats: goesOn, signs: until(3000) };
  const end = givenUp(hangs);
  assert.equal(end?.atMs, 3000 + LIMIT_MS + STEP_MS);
  assert.match(end.problem, /^rank 1 has shown no sign of life for 7 s .*its process lives/);
  assert.equal(givenUp({ ...hangs, judged: "processes" }), null);
});

test("time in which a program could not run is not counted, up to a minute", () => {
  const hangs = { beats: goesOn, signs: until(3000) };
  // Nine tenths of the time others have the processor.
  const slow = givenUp({ ...hangs, heldUpMs: (ms) => 0.9 * ms });
  assert.ok(slow !== null && slow.atMs > 60_000 && slow.atMs < 72_000, `${slow?.atMs}`);
  const never = givenUp({ ...hangs, heldUpMs: goesOn });
  assert.ok(never !== null && never.atMs > 66_000 && never.atMs < 72_000, `${never?.atMs}`);
  // What held it up before this standstill says nothing about it.
  const before = givenUp({ ...hangs, heldUpMs: until(3000) });
  assert.equal(before?.atMs, 3000 + LIMIT_MS + STEP_MS);
});

test("a rank that looks seldom was busy itself, and gives nobody up", () => {
  const hangs = { beats: until(3000), signs: until(3000) };
  assert.equal(givenUp({ ...hangs, looks: (ms) => ms % 1500 === 0 }), null);
});
