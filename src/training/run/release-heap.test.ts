/** @file The heap's free memory goes back to the system when that is asked for. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { releaseHeap } from "./release-heap.ts";

test("what is no longer used leaves the heap", () => {
  const garbage = Array.from({ length: 64 }, (_, index) => new Array(2 ** 17).fill(index));
  const full = process.memoryUsage().heapTotal;
  assert.equal(garbage.length, 64);
  garbage.length = 0;
  releaseHeap();
  assert.ok(process.memoryUsage().heapTotal < full - 48 * 2 ** 20, `was ${full} bytes`);
});

test("garbage collection is not left in anyone's hands", () => {
  releaseHeap();
  assert.equal("gc" in globalThis, false);
});
