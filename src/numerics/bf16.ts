/**
 * @file bfloat16: the upper half of a float32 (1 sign, 8 exponent, 7 fraction bits), as `uint16`
 * codes.
 *
 * Encoding rounds to the nearest value, ties to the even code. Infinities and subnormals are kept,
 * a finite value beyond the largest bfloat16 rounds to infinity as IEEE 754 says, and a NaN stays a
 * NaN of the same sign: it is made quiet, so that cutting its payload can never leave an infinity.
 * The array forms work on integer views and allocate nothing per element. Values are float32: a
 * JavaScript number with more bits is rounded to float32 first, as the kernels' accumulators are.
 */
import { assert } from "../base/errors.ts";

// One word seen as a float and as an integer; it carries nothing from one call to the next.
const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

/** The code of float32 bits. Arithmetic wraps at 32 bits, which `>>>` then reads as unsigned. */
function codeOfBits(word: number): number {
  if ((word & 0x7fffffff) > 0x7f800000) return (word >>> 16) | 0x40;
  return ((word + 0x7fff + ((word >>> 16) & 1)) | 0) >>> 16;
}

/** The bfloat16 code of a value. */
export function toBf16(value: number): number {
  float[0] = value;
  return codeOfBits(bits[0]!);
}

/** The value of a bfloat16 code; exact. */
export function fromBf16(code: number): number {
  bits[0] = code << 16;
  return float[0]!;
}

/** The bfloat16 nearest to a value. */
export function roundToBf16(value: number): number {
  return fromBf16(toBf16(value));
}

/** Codes of `values`, element by element. */
export function encodeBf16(values: Float32Array, out: Uint16Array): void {
  assert(
    out.length === values.length,
    `encodeBf16: out (${out.length}) must be as long as values (${values.length})`,
  );
  const words = new Int32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) out[i] = codeOfBits(words[i]!);
}

/** Values of `codes`, element by element; exact. */
export function decodeBf16(codes: Uint16Array, out: Float32Array): void {
  assert(
    out.length === codes.length,
    `decodeBf16: out (${out.length}) must be as long as codes (${codes.length})`,
  );
  const words = new Int32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < codes.length; i++) words[i] = codes[i]! << 16;
}
