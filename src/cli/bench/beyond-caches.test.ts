/** @file The arrays of row kernels are beyond the caches, or the row says that they are not. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { rowsBeyondCaches } from "./beyond-caches.ts";

const MIB = 2 ** 20;
const ROW = 16 * 1024;

test("arrays have twice the bytes of the largest cache, in whole tasks", () => {
  const { rows, remark } = rowsBeyondCaches(ROW, 480 * MIB, 24e9);
  assert.equal(rows * ROW, 960 * MIB);
  assert.equal(remark, "");
  assert.equal(rowsBeyondCaches(3 * 8192, 480 * MIB, 24e9).rows % 8, 0);
  assert.equal(rowsBeyondCaches(ROW, 32 * MIB, 24e9).rows * ROW, 128 * MIB);
});

test("a row says so where memory is too short or caches are unknown", () => {
  const short = rowsBeyondCaches(ROW, 480 * MIB, 1000 * MIB);
  assert.ok(short.rows * ROW <= 500 * MIB);
  assert.equal(short.remark, "in part within a cache of 480 MiB");
  assert.match(rowsBeyondCaches(ROW, 4096 * MIB, 64e9).remark, /in part within/);
  assert.deepEqual(rowsBeyondCaches(ROW, null, 24e9), { rows: 8192, remark: "caches unknown" });
});
