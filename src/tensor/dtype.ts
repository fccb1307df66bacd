/** @file Element types and their sizes. */

export const DTYPES = ["f32", "f64", "bf16", "e4m3", "e5m2", "i32", "u8"] as const;
/**
 * `f64` exists for gradient checks on the reference kernels; `e4m3` and `e5m2` are codes that a
 * scale belongs to (scaled-tensor.ts); `u8` holds bytes, such as packed codes of 12 bits.
 */
export type DType = (typeof DTYPES)[number];

export const DTYPE_BYTES: Readonly<Record<DType, number>> = {
  f32: 4,
  f64: 8,
  bf16: 2,
  e4m3: 1,
  e5m2: 1,
  i32: 4,
  u8: 1,
};

/** What activations and gradients are computed in: f32, or f64 for gradient checks. */
export type FloatType = "f32" | "f64";
