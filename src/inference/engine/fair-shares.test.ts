/** @file Whose requests may wait; the turns of those that do are the scheduler's tests. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { mayWait } from "./fair-shares.ts";

const times = (count: number, tenant: string): string[] => Array<string>(count).fill(tenant);

describe("a queue shared by accounts", () => {
  it("takes anybody while there is room, and one account no further", () => {
    assert.equal(mayWait("a", times(7, "a"), 8), true);
    assert.equal(mayWait("a", times(8, "a"), 8), false);
    assert.equal(mayWait("a/new", times(8, "a/old"), 8), false);
  });

  it("takes accounts beyond it up to their even part, users not counted", () => {
    const full = times(8, "a");
    assert.equal(mayWait("b", full, 8), true);
    assert.equal(mayWait("b/x", [...full, ...times(3, "b/y")], 8), true);
    assert.equal(mayWait("b/x", [...full, ...times(4, "b/y")], 8), false);
  });

  it("ends at twice its length, however many accounts there are", () => {
    const accounts = Array.from({ length: 7 }, (_, index) => `account ${index}`);
    assert.equal(mayWait("new", [...times(8, "a"), ...accounts], 8), true);
    assert.equal(mayWait("new", [...times(9, "a"), ...accounts], 8), false);
  });
});
