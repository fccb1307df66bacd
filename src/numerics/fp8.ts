/**
 * @file The two FP8 formats: E4M3 (the one the DeepSeek-V3 recipe uses everywhere) and E5M2.
 *
 *   E4M3   1-4-3, bias 7, "fn": largest 448, smallest 2^-9, NaN 0x7f and 0xff, no infinity;
 *          encoding saturates, so ±Infinity becomes ±448. Quantisation with scales still shows an
 *          infinity: its tile's scale is infinite.
 *   E5M2   1-5-2, bias 15, as IEEE 754: largest 57344, smallest 2^-16, infinities and NaNs;
 *          overflow is infinite.
 *
 * Source: OCP 8-bit Floating Point Specification, revision 1.0.
 */
import {
  decodeSmallFloats,
  defineSmallFloat,
  encodeSmallFloat,
  encodeSmallFloats,
  type SmallFloat,
} from "./small-float.ts";

export const E4M3: SmallFloat = defineSmallFloat({
  name: "fp8_e4m3",
  exponentBits: 4,
  fractionBits: 3,
  top: "finite",
});

export const E5M2: SmallFloat = defineSmallFloat({
  name: "fp8_e5m2",
  exponentBits: 5,
  fractionBits: 2,
  top: "ieee",
});

/** The E4M3 code of a value; saturates at ±448. */
export function toE4m3(value: number): number {
  return encodeSmallFloat(E4M3, value);
}

/** The value of an E4M3 code. */
export function fromE4m3(code: number): number {
  return E4M3.values[code]!;
}

export function encodeE4m3(values: Float32Array, out: Uint8Array): void {
  encodeSmallFloats(E4M3, values, out);
}

export function decodeE4m3(codes: Uint8Array, out: Float32Array): void {
  decodeSmallFloats(E4M3, codes, out);
}

/** The E5M2 code of a value; overflow becomes infinity. */
export function toE5m2(value: number): number {
  return encodeSmallFloat(E5M2, value);
}

/** The value of an E5M2 code. */
export function fromE5m2(code: number): number {
  return E5M2.values[code]!;
}

export function encodeE5m2(values: Float32Array, out: Uint8Array): void {
  encodeSmallFloats(E5M2, values, out);
}

export function decodeE5m2(codes: Uint8Array, out: Float32Array): void {
  decodeSmallFloats(E5M2, codes, out);
}
