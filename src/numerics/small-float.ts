/**
 * @file Binary floating-point formats of at most 16 bits, described by numbers and handled by one
 * set of functions.
 *
 * A code is, from the highest bit: sign, exponent (`exponentBits`, bias `bias`), fraction
 * (`fractionBits`). Exponent 0 holds zero and the subnormals. What the top of the range means
 * differs:
 *
 *   "ieee"      the last exponent is infinity (fraction 0) and NaN; overflow becomes infinity
 *   "finite"    there is no infinity and one NaN, all ones (the "fn" formats); overflow, and
 *               infinity itself, become the largest finite value, as `cvt.satfinite` and the OCP's
 *               saturating mode have it
 *
 * Rounding is to nearest, ties to even, and happens once: from the exact float32 (subnormals
 * included) to the format. Encoding a NaN gives the format's canonical NaN with the NaN's sign.
 *
 * Source: OCP 8-bit Floating Point Specification, revision 1.0, for the two FP8 formats.
 */
import { assert } from "../base/errors.ts";

/** What distinguishes a format from the others, and what follows from that. */
export interface SmallFloat {
  readonly name: string;
  readonly fractionBits: number;
  readonly bias: number;
  readonly signBit: number;
  readonly top: "ieee" | "finite";
  /** Code of the largest finite value. */
  readonly largestCode: number;
  /** Code that overflow turns into: infinity, or the largest finite value. */
  readonly overflowCode: number;
  readonly nanCode: number;
  /** The largest finite value. */
  readonly largest: number;
  /** The value of every code, in float32; each is exact. */
  readonly values: Float32Array;
}

/** Encoded values: bytes for 8-bit formats, words for the others. */
export type Codes = Uint8Array | Uint16Array;

/** Describe a format and tabulate its values. */
export function defineSmallFloat(format: {
  name: string;
  exponentBits: number;
  fractionBits: number;
  top: "ieee" | "finite";
}): SmallFloat {
  const { name, exponentBits, fractionBits, top } = format;
  const numBits = 1 + exponentBits + fractionBits;
  assert(numBits <= 16, `${name} has ${numBits} bits; a small float has at most 16`);
  const bias = 2 ** (exponentBits - 1) - 1;
  const signBit = 2 ** (numBits - 1);
  const infinityCode = signBit - 2 ** fractionBits;
  const largestCode = top === "ieee" ? infinityCode - 1 : signBit - 2;
  const values = new Float32Array(2 * signBit);
  for (let code = 0; code < signBit; code++) {
    const exponent = code >> fractionBits;
    const fraction = code % 2 ** fractionBits;
    const significand = exponent === 0 ? fraction : fraction + 2 ** fractionBits;
    const finite = significand * 2 ** (Math.max(exponent, 1) - bias - fractionBits);
    const beyond = code === infinityCode && top === "ieee" ? Infinity : NaN;
    values[code] = code <= largestCode ? finite : beyond;
    values[code + signBit] = -values[code]!;
  }
  return Object.freeze({
    name,
    fractionBits,
    bias,
    signBit,
    top,
    largestCode,
    overflowCode: top === "ieee" ? infinityCode : largestCode,
    // The quiet NaN of an IEEE format has the first fraction bit; of the others, every bit.
    nanCode: top === "ieee" ? infinityCode + 2 ** (fractionBits - 1) : signBit - 1,
    largest: values[largestCode]!,
    values,
  });
}

// One word seen as a float and as an integer; it carries nothing from one call to the next.
const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

/** The code of a float32 given by its bits. */
export function encodeBits(format: SmallFloat, word: number): number {
  // Without a branch: the sign of real data is a coin no predictor can foresee.
  const sign = (word >>> 31) * format.signBit;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | format.nanCode;
  const drop = 23 - format.fractionBits;
  const exponent = magnitude >>> 23;
  const exponentNormalMin = 128 - format.bias;
  let code: number;
  if (exponent >= exponentNormalMin) {
    const half = (1 << (drop - 1)) - 1;
    const rounded = magnitude + half + ((magnitude >>> drop) & 1);
    code = (rounded >>> drop) - ((127 - format.bias) << format.fractionBits);
  } else {
    // A shift of 25 or more leaves less than half of the smallest subnormal.
    const shift = drop + exponentNormalMin - exponent;
    if (shift > 24) return sign;
    const significand = (magnitude & 0x7fffff) | 0x800000;
    code = (significand + (1 << (shift - 1)) - 1 + ((significand >>> shift) & 1)) >>> shift;
  }
  return sign | (code > format.largestCode ? format.overflowCode : code);
}

/** The code of a value (rounded to float32 first, if it has more bits). */
export function encodeSmallFloat(format: SmallFloat, value: number): number {
  float[0] = value;
  return encodeBits(format, bits[0]!);
}

/** Codes of `values`, element by element. */
export function encodeSmallFloats(format: SmallFloat, values: Float32Array, out: Codes): void {
  assert(
    out.length === values.length,
    `${format.name}: out (${out.length}) must be as long as values (${values.length})`,
  );
  const words = new Int32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) out[i] = encodeBits(format, words[i]!);
}

/** Values of `codes`, element by element; exact. */
export function decodeSmallFloats(format: SmallFloat, codes: Codes, out: Float32Array): void {
  assert(
    out.length === codes.length,
    `${format.name}: out (${out.length}) must be as long as codes (${codes.length})`,
  );
  const { values } = format;
  for (let i = 0; i < codes.length; i++) out[i] = values[codes[i]!]!;
}
