/** @file Memory: where reservations stand, and which huge pages are asked for. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { CpuMemory, HUGE_PAGE_BYTES, type NativeMemory } from "./memory.ts";
import { createNativeRuntime } from "./native.ts";

/** Native code that lies about where the memory is, and keeps what is asked of it. */
function nativeAt(base: number): { native: NativeMemory; asked: [number, number][] } {
  const asked: [number, number][] = [];
  return {
    asked,
    native: {
      addressOf: () => base,
      useHugePages: (address, byteLength) => asked.push([address, byteLength]),
    },
  };
}

describe("reservations", () => {
  for (const base of [0, 3 * HUGE_PAGE_BYTES, 2 ** 40 + 65536]) {
    it(`do not overlap, and large ones begin a huge page, in memory at ${base}`, () => {
      const memory = CpuMemory.create(nativeAt(base).native);
      const sizes = [0, 1, 5000, 3 * 2 ** 20, 70_000, 2 ** 21, 2 ** 20, 2 ** 25 + 1, 2 ** 20, 0, 9];
      const spans = sizes.map((byteLength) => ({ at: memory.reserve(byteLength), byteLength }));
      for (const { at, byteLength } of spans) {
        assert.equal((at + base) % 4096, 0);
        assert.ok(at > 0 && at + byteLength <= memory.byteLength);
        if (byteLength >= HUGE_PAGE_BYTES) assert.equal((at + base) % HUGE_PAGE_BYTES, 0);
      }
      const ordered = spans.toSorted((a, b) => a.at - b.at || a.byteLength - b.byteLength);
      for (const [index, { at }] of ordered.entries()) {
        const before = ordered[index - 1];
        assert.ok(before === undefined || before.at + before.byteLength <= at);
      }
    });
  }

  it("that are small stand together", () => {
    const memory = CpuMemory.create(null);
    const first = memory.reserve(64);
    memory.reserve(2 ** 24);
    assert.equal(memory.reserve(64), first + 4096);
  });

  it("take what is left without growing", () => {
    const memory = CpuMemory.create(nativeAt(2 ** 40 + 65536).native);
    memory.reserve(12345);
    const before = memory.byteLength;
    const rest = memory.unreservedBytes;
    assert.equal(memory.reserve(rest) + rest, before);
    assert.equal(memory.byteLength, before);
  });
});

describe("huge pages", () => {
  it("are asked for where they lie wholly within what will be filled", () => {
    const page = HUGE_PAGE_BYTES;
    const base = 2 ** 40 + 65536;
    const { native, asked } = nativeAt(base);
    const memory = CpuMemory.create(native);
    const at = memory.reserve(4 * page);
    memory.useHugePages(at + 1, at + 2 * page - 1);
    assert.deepEqual(asked, []);
    memory.useHugePages(at + 1, at + 4 * page - 1);
    memory.useHugePages(at, at + page);
    assert.deepEqual(asked, [
      [base + at + page, 2 * page],
      [base + at, page],
    ]);
  });

  it("change nothing of what is read and written, given or refused", () => {
    const { runtime } = createNativeRuntime();
    const memory = CpuMemory.create(runtime);
    const at = memory.reserve(2 * HUGE_PAGE_BYTES);
    memory.u8[at] = 7;
    memory.useHugePages(at, at + 2 * HUGE_PAGE_BYTES);
    memory.u8[at + HUGE_PAGE_BYTES] = 9;
    assert.deepEqual(
      [memory.u8[at], memory.u8[at + 1], memory.u8[at + HUGE_PAGE_BYTES]],
      [7, 0, 9],
    );
  });
});
