/** @file Arenas: marks, growth, reuse, and where tensors stand. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { CpuMemory, HUGE_PAGE_BYTES } from "../device/cpu/memory.ts";
import { Arena } from "./arena.ts";
import { makeTensor, reshape, sliceColumns, sliceRows } from "./tensor.ts";
import { fillFrom, view, viewSpan } from "./view.ts";

test("what was allocated under a mark is given out again after it", () => {
  const arena = new Arena(CpuMemory.create(null), "test");
  const kept = arena.allocate("f32", [3, 5]);
  const places: number[] = [];
  for (let round = 0; round < 2; round++) {
    using _mark = arena.mark();
    places.push(arena.allocate("bf16", [100]).byteOffset);
  }
  assert.equal(places[0], places[1]);
  assert.ok(places[0]! >= kept.byteOffset + 60);
  assert.equal(arena.liveBytes, 64);
});

test("a step that repeats its allocations asks for no more memory", () => {
  const memory = CpuMemory.create(null);
  const arena = new Arena(memory, "test");
  const step = (): void => {
    using _mark = arena.mark();
    for (const megabytes of [1, 10, 7, 30, 3]) arena.allocate("u8", [megabytes * 2 ** 20]);
  };
  step();
  const reserved = memory.reservedBytes;
  step();
  assert.equal(memory.reservedBytes, reserved);
  assert.ok(arena.peakBytes < 51.01 * 2 ** 20);
});

test("a chunk becomes longer where nothing else was reserved behind it", () => {
  const memory = CpuMemory.create(null);
  const [arena, other] = [new Arena(memory, "test"), new Arena(memory, "other")];
  const place = (owner: Arena): number => owner.allocate("u8", [10 * 2 ** 20]).byteOffset;
  const places = [place(arena), place(arena), place(other), place(arena), place(arena)];
  const [first = 0, second = 0, between = 0, third = 0, fourth = 0] = places;
  assert.ok(second - first < 10.01 * 2 ** 20);
  assert.ok(third - second < 10.01 * 2 ** 20, "what is left of a longer chunk is used");
  assert.ok(fourth > between);
});

test("a large arena asks for a huge page before it is used, a small one for pages it fills", () => {
  const asked: [number, number][] = [];
  const memory = CpuMemory.create({
    addressOf: () => 0,
    useHugePages: (address, byteLength) => asked.push([address, address + byteLength]),
  });
  const arena = new Arena(memory, "test");
  const first = arena.allocate("u8", [2 ** 20]).byteOffset;
  const chunk = first - (first % HUGE_PAGE_BYTES);
  const pageEnd = (index: number): number => chunk + index * HUGE_PAGE_BYTES;
  assert.deepEqual(asked.splice(0), []);
  arena.allocate("u8", [2 ** 21]);
  assert.deepEqual(asked.splice(0), [[chunk, pageEnd(1)]]);
  arena.allocate("u8", [2 ** 21]);
  assert.deepEqual(asked.splice(0), [[chunk, pageEnd(3)]]);
  arena.allocate("u8", [2 ** 18]);
  assert.deepEqual(asked.splice(0), []);
  arena.allocate("u8", [2 ** 20]);
  assert.deepEqual(asked.splice(0), [[chunk, pageEnd(4)]]);
});

test("marks must be released in reverse order", () => {
  const arena = new Arena(CpuMemory.create(null), "test");
  const outer = arena.mark();
  const inner = arena.mark();
  assert.throws(() => outer[Symbol.dispose](), /released in reverse order/);
  inner[Symbol.dispose]();
  outer[Symbol.dispose]();
});

test("large tensors of several arenas start at different places of a page", () => {
  const memory = CpuMemory.create(null);
  const starts = Array.from(
    { length: 8 },
    (_, index) => new Arena(memory, `a${index}`).allocate("f32", [2 ** 22]).byteOffset % 4096,
  );
  assert.equal(new Set(starts).size, 8);
  assert.ok(starts.every((start) => start % 64 === 0));
});

test("slices and other shapes see the same elements", () => {
  const arena = new Arena(CpuMemory.create(null), "test");
  const matrix = arena.allocate("f32", [2, 3, 4]);
  fillFrom(
    matrix,
    Array.from({ length: 24 }, (_, index) => index),
  );
  assert.deepEqual([matrix.rows, matrix.columns], [6, 4]);
  const rows = sliceRows(matrix, 2, 4);
  assert.deepEqual(Array.from(view(rows)), [8, 9, 10, 11, 12, 13, 14, 15]);
  const columns = sliceColumns(rows, 1, 3);
  assert.deepEqual(Array.from(viewSpan(columns)), [9, 10, 11, 12, 13, 14]);
  assert.deepEqual(Array.from(view(reshape(rows, [8]))), Array.from(view(rows)));
  assert.throws(() => reshape(columns, [4]), /keeps its last dimension/);
  assert.throws(() => view(columns), /needs contiguous rows/);
});

test("tensors outside the memory, misaligned or with overlapping rows are refused", () => {
  const memory = CpuMemory.create(null);
  assert.throws(() => makeTensor(memory, "f32", [memory.byteLength], 0), /beyond the device/);
  assert.throws(() => makeTensor(memory, "f32", [4], 2), /must align/);
  assert.throws(() => makeTensor(memory, "f32", [2, 4], 0, 3), /at least the columns/);
  assert.throws(() => makeTensor(memory, "f32", [-1], 0), /whole number/);
});
