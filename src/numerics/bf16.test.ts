/**
 * @file Tests of bfloat16: every code, every midpoint between two codes, and the special values.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { decodeBf16, encodeBf16, fromBf16, roundToBf16, toBf16 } from "./bf16.ts";

function floatOfBits(word: number): number {
  return new Float32Array(new Uint32Array([word]).buffer)[0]!;
}

test("every code that is a number decodes and encodes to itself", () => {
  for (let code = 0; code < 0x10000; code++) {
    const value = fromBf16(code);
    assert.equal(value, floatOfBits(code * 65536), `code ${code}`);
    if (!Number.isNaN(value)) assert.equal(toBf16(value), code, `code ${code}`);
  }
});

test("a midpoint goes to the even code and its neighbours to the nearer one", () => {
  for (let code = 0; code < 0x7f80; code++) {
    for (const sign of [0, 0x8000]) {
      const middle = (code + sign) * 65536 + 0x8000;
      const even = code + (code % 2) + sign;
      assert.equal(toBf16(floatOfBits(middle)), even, `middle above ${code}`);
      assert.equal(toBf16(floatOfBits(middle - 1)), code + sign, `below the middle of ${code}`);
      assert.equal(toBf16(floatOfBits(middle + 1)), code + 1 + sign, `above the middle of ${code}`);
    }
  }
});

test("what lies beyond the largest value becomes infinite, and not before its midpoint", () => {
  const largest = fromBf16(0x7f7f);
  assert.equal(roundToBf16(floatOfBits(0x7f7f7fff)), largest);
  assert.equal(roundToBf16(floatOfBits(0x7f7f8000)), Infinity);
  assert.equal(roundToBf16(3.4028234663852886e38), Infinity);
  assert.equal(roundToBf16(-Infinity), -Infinity);
  assert.equal(toBf16(-0), 0x8000);
});

test("every NaN stays a quiet NaN of its sign, in the array form too", () => {
  const words = new Uint32Array([0x7f800001, 0x7f80ffff, 0x7fffffff, 0xff800001, 0xffffffff]);
  const codes = new Uint16Array(words.length);
  encodeBf16(new Float32Array(words.buffer), codes);
  for (const [i, code] of codes.entries()) {
    assert.equal(code & 0x7fc0, 0x7fc0, `0x${words[i]!.toString(16)} is quiet`);
    assert.equal(code >> 15, words[i]! >>> 31, `0x${words[i]!.toString(16)} keeps its sign`);
  }
});

test("the array forms agree with the scalar forms at any offset of their buffers", () => {
  const seed = 7;
  const random = new Random(seed);
  const words = new Uint32Array(5001).map(() => random.uint32());
  const values = new Float32Array(words.buffer, 4);
  const codes = new Uint16Array(new SharedArrayBuffer(2 * 5000 + 2), 2);
  encodeBf16(values, codes);
  const back = new Float32Array(5001).subarray(1);
  decodeBf16(codes, back);
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) continue;
    assert.equal(codes[i], toBf16(values[i]!), `seed ${seed}, element ${i}`);
    assert.equal(back[i], fromBf16(codes[i]!), `seed ${seed}, element ${i}`);
  }
  assert.throws(() => encodeBf16(values, codes.subarray(1)), /as long as values/);
});
