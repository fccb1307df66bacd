/**
 * @file Float tensors as bytes: F32, BF16 and F16, little-endian as on every machine Node 24 is
 * commonly run on; nothing is swapped.
 *
 * Encoding rounds to nearest even; decoding is exact. FP8 needs scales: fp8-weights.ts.
 */
import { assert } from "../base/errors.ts";
import { decodeBf16, encodeBf16 } from "../numerics/bf16.ts";
import { ELEMENT_BYTES } from "./tensors.ts";

export type FloatDtype = "F32" | "BF16" | "F16";

export function isFloatDtype(dtype: string): dtype is FloatDtype {
  return dtype === "F32" || dtype === "BF16" || dtype === "F16";
}

/** The bytes of `values`: a view for F32, a new array otherwise. */
export function encodeFloats(dtype: FloatDtype, values: Float32Array): Uint8Array {
  if (dtype === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  if (dtype === "F16") return new Uint8Array(new Float16Array(values).buffer);
  const codes = new Uint16Array(values.length);
  encodeBf16(values, codes);
  return new Uint8Array(codes.buffer);
}

/** The values of a tensor's bytes, which must lie at the start of their buffer. */
export function decodeFloats(
  dtype: FloatDtype,
  bytes: Uint8Array<ArrayBuffer>,
  out: Float32Array,
): void {
  const expected = out.length * ELEMENT_BYTES[dtype];
  assert(bytes.length === expected, `${bytes.length} bytes for ${out.length} ${dtype} values`);
  assert(
    bytes.byteOffset % 4 === 0,
    `bytes at offset ${bytes.byteOffset}, expected a multiple of 4`,
  );
  const { buffer, byteOffset } = bytes;
  if (dtype === "BF16") decodeBf16(new Uint16Array(buffer, byteOffset, out.length), out);
  else if (dtype === "F16") out.set(new Float16Array(buffer, byteOffset, out.length));
  else out.set(new Float32Array(buffer, byteOffset, out.length));
}
