/**
 * @file E5M6: the 12-bit format in which the recipe caches the input of the attention output
 * projection.
 *
 * The report names the format and no more. Ours has 1 sign, 5 exponent and 6 fraction bits, bias
 * 15, with infinity and NaN in the last exponent as in IEEE 754: an E5M6 value is the upper twelve
 * bits of a binary16. Largest 65024, smallest 2^-20. Overflow is infinite; with a tile scale of
 * amax / 65024 it does not occur.
 *
 * Two codes are packed in three bytes, the first one lowest (bit 11 is the leftmost of a code):
 *
 *     byte 0: first[7:0]    byte 1: second[3:0] first[11:8]    byte 2: second[11:4]
 */
import { assert } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import {
  decodeSmallFloats,
  defineSmallFloat,
  encodeSmallFloat,
  encodeSmallFloats,
  type SmallFloat,
} from "./small-float.ts";

export const E5M6: SmallFloat = defineSmallFloat({
  name: "e5m6",
  exponentBits: 5,
  fractionBits: 6,
  top: "ieee",
});

/** The E5M6 code of a value; overflow becomes infinity. */
export function toE5m6(value: number): number {
  return encodeSmallFloat(E5M6, value);
}

/** The value of an E5M6 code. */
export function fromE5m6(code: number): number {
  return E5M6.values[code]!;
}

export function encodeE5m6(values: Float32Array, out: Uint16Array): void {
  encodeSmallFloats(E5M6, values, out);
}

export function decodeE5m6(codes: Uint16Array, out: Float32Array): void {
  decodeSmallFloats(E5M6, codes, out);
}

/** Bytes that `numCodes` packed codes take; an odd last code takes two. */
export function packedE5m6Bytes(numCodes: number): number {
  return ceilDiv(numCodes * 3, 2);
}

/**
 * Pack 12-bit codes; an odd last code fills a byte and the low half of another, whose rest is zero.
 */
export function packE5m6(codes: Uint16Array, out: Uint8Array): void {
  const numBytes = packedE5m6Bytes(codes.length);
  assert(out.length === numBytes, `packE5m6: out has ${out.length} bytes, needs ${numBytes}`);
  const numPairs = codes.length >> 1;
  for (let pair = 0; pair < numPairs; pair++) {
    const first = codes[2 * pair]!;
    const second = codes[2 * pair + 1]!;
    out[3 * pair] = first;
    out[3 * pair + 1] = (first >> 8) | ((second & 0xf) << 4);
    out[3 * pair + 2] = second >> 4;
  }
  if (codes.length % 2 === 1) {
    const last = codes[codes.length - 1]!;
    out[3 * numPairs] = last;
    out[3 * numPairs + 1] = last >> 8;
  }
}

/** The inverse of `packE5m6`; `out.length` says how many codes there are. */
export function unpackE5m6(bytes: Uint8Array, out: Uint16Array): void {
  const numBytes = packedE5m6Bytes(out.length);
  assert(bytes.length === numBytes, `unpackE5m6: got ${bytes.length} bytes, needs ${numBytes}`);
  const numPairs = out.length >> 1;
  for (let pair = 0; pair < numPairs; pair++) {
    const middle = bytes[3 * pair + 1]!;
    out[2 * pair] = bytes[3 * pair]! | ((middle & 0xf) << 8);
    out[2 * pair + 1] = (middle >> 4) | (bytes[3 * pair + 2]! << 4);
  }
  if (out.length % 2 === 1) {
    out[out.length - 1] = bytes[3 * numPairs]! | ((bytes[3 * numPairs + 1]! & 0xf) << 8);
  }
}
