/**
 * @file Exhaustive tests of E4M3, E5M2 and E5M6: all codes, all midpoints, both signs, the ends of
 * the range.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Random } from "../base/random.ts";
import { E5M6, fromE5m6, packE5m6, packedE5m6Bytes, toE5m6, unpackE5m6 } from "./e5m6.ts";
import { E4M3, E5M2, fromE4m3, fromE5m2, toE4m3, toE5m2 } from "./fp8.ts";
import {
  type Codes,
  decodeSmallFloats,
  encodeSmallFloat,
  encodeSmallFloats,
  type SmallFloat,
} from "./small-float.ts";

/** The float32 values next to a positive one. */
function neighbours(value: number): { below: number; above: number } {
  const word = new Uint32Array(new Float32Array([value]).buffer)[0]!;
  const near = new Float32Array(new Uint32Array([word - 1, word + 1]).buffer);
  return { below: near[0]!, above: near[1]! };
}

for (const format of [E4M3, E5M2, E5M6] as SmallFloat[]) {
  const encode = (value: number): number => encodeSmallFloat(format, value);
  describe(format.name, () => {
    test("every code that is a number decodes and encodes to itself, both zeros included", () => {
      for (let code = 0; code < format.values.length; code++) {
        const value = format.values[code]!;
        if (!Number.isNaN(value)) assert.equal(encode(value), code, `code ${code}`);
      }
      assert.ok(Object.is(format.values[format.signBit], -0));
    });

    test("values rise with the code and are the negatives of each other across the sign", () => {
      for (let code = 1; code <= format.largestCode; code++) {
        assert.ok(format.values[code]! > format.values[code - 1]!, `code ${code}`);
        assert.equal(format.values[code + format.signBit], -format.values[code]!);
      }
    });

    test("a midpoint goes to the even code and its neighbours to the nearer one", () => {
      for (let code = 0; code < format.largestCode; code++) {
        const middle = (format.values[code]! + format.values[code + 1]!) / 2;
        const { below, above } = neighbours(middle);
        for (const [sign, signBit] of [
          [1, 0],
          [-1, format.signBit],
        ] as const) {
          assert.equal(encode(sign * middle), code + (code % 2) + signBit, `above code ${code}`);
          assert.equal(encode(sign * below), code + signBit, `below the middle of ${code}`);
          assert.equal(encode(sign * above), code + 1 + signBit, `above the middle of ${code}`);
        }
      }
    });

    test("what is nearer to zero than half the smallest value becomes a zero of its sign", () => {
      const smallest = format.values[1]!;
      for (const value of [smallest / 2, smallest / 4, 2 ** -126, 2 ** -149]) {
        assert.equal(encode(value), 0, `${value}`);
        assert.equal(encode(-value), format.signBit, `${-value}`);
      }
    });

    test("a NaN becomes the format's NaN with its sign", () => {
      const nans = new Float32Array(new Uint32Array([0x7f800001, 0xffc00000]).buffer);
      const codes = new Uint16Array(2);
      encodeSmallFloats(format, nans, codes);
      assert.deepEqual([...codes], [format.nanCode, format.nanCode + format.signBit]);
      for (const code of codes) assert.ok(Number.isNaN(format.values[code]));
    });

    test("the array forms agree with the scalar form on random float32 bits", () => {
      const seed = 11;
      const random = new Random(seed);
      const values = new Float32Array(new Uint32Array(4000).map(() => random.uint32()).buffer);
      const codes: Codes = new Uint16Array(values.length);
      encodeSmallFloats(format, values, codes);
      const back = new Float32Array(values.length);
      decodeSmallFloats(format, codes, back);
      for (let i = 0; i < values.length; i++) {
        if (Number.isNaN(values[i])) continue;
        assert.equal(codes[i], encode(values[i]!), `seed ${seed}, element ${i}`);
        assert.equal(back[i], format.values[codes[i]!], `seed ${seed}, element ${i}`);
      }
    });
  });
}

test("E4M3 has the published values and saturates, even at infinity", () => {
  const { values } = E4M3;
  assert.deepEqual(
    [values[0x01], values[0x07], values[0x08], values[0x38], values[0x7e], values[0xfe]],
    [2 ** -9, 7 * 2 ** -9, 2 ** -6, 1, 448, -448],
  );
  assert.equal([...values].filter((value) => Number.isNaN(value)).length, 2);
  assert.equal([...values].filter((value) => Math.abs(value) === Infinity).length, 0);
  for (const value of [449, 464, 465, 1e9, 3.4e38, Infinity]) {
    assert.equal(fromE4m3(toE4m3(value)), 448, `${value}`);
    assert.equal(fromE4m3(toE4m3(-value)), -448, `${-value}`);
  }
});

test("E5M2 and E5M6 are the upper bits of a binary16, and overflow to infinity", () => {
  for (let code = 0; code < 0x10000; code += 16) {
    const half = new Float16Array(new Uint16Array([code]).buffer)[0]!;
    assert.ok(Object.is(E5M6.values[code >> 4], half), `E5M6 code ${code >> 4}`);
    if (code % 256 === 0) assert.ok(Object.is(E5M2.values[code >> 8], half), `E5M2 ${code >> 8}`);
  }
  assert.equal(fromE5m2(toE5m2(61439)), 57344);
  assert.equal(fromE5m2(toE5m2(61440)), Infinity);
  assert.equal(fromE5m2(toE5m2(-3e38)), -Infinity);
  assert.equal(fromE5m6(toE5m6(65279)), 65024);
  assert.equal(fromE5m6(toE5m6(65280)), Infinity);
});

test("packed E5M6 takes three bytes for two codes and comes back for every length", () => {
  const packed = new Uint8Array(packedE5m6Bytes(3));
  packE5m6(new Uint16Array([0xabc, 0x123, 0xfed]), packed);
  assert.deepEqual([...packed], [0xbc, 0x3a, 0x12, 0xed, 0x0f]);

  const all = new Uint16Array(4096).map((_, code) => code);
  for (let length = 0; length < 20; length++) {
    const codes = all.subarray(4096 - length);
    const bytes = new Uint8Array(packedE5m6Bytes(length)).fill(0xaa);
    packE5m6(codes, bytes);
    const back = new Uint16Array(length);
    unpackE5m6(bytes, back);
    assert.deepEqual(back, codes);
  }
});
