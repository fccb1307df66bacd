/**
 * @file The WebAssembly instructions that Hadal's kernels use, by the specification's names.
 *
 * Source: WebAssembly core specification §5.4 and its vector (prefix 0xFD) and relaxed-vector
 * tables. An instruction that is not here is not used; add it with its code from the specification.
 */

/** Scalar instructions without immediates: one byte. */
export const SCALAR_OPS = {
  drop: 0x1a,
  select: 0x1b,
  "i32.eqz": 0x45,
  "i32.lt_s": 0x48,
  "i32.lt_u": 0x49,
  "i32.gt_s": 0x4a,
  "i32.ge_s": 0x4e,
  "i32.add": 0x6a,
  "i32.sub": 0x6b,
  "i32.mul": 0x6c,
  "i32.and": 0x71,
  "i32.xor": 0x73,
  "i32.shl": 0x74,
  "i32.shr_s": 0x75,
  "f32.add": 0x92,
  "i32.trunc_f64_u": 0xab,
  "f32.demote_f64": 0xb6,
} as const;

/** Vector instructions without immediates: prefix 0xFD, then the code in LEB128. */
export const VECTOR_OPS = {
  "i32x4.splat": 0x11,
  "f32x4.splat": 0x13,
  "i32x4.eq": 0x37,
  "i32x4.lt_s": 0x39,
  "f32x4.eq": 0x41,
  "f32x4.lt": 0x43,
  "f32x4.le": 0x45,
  "v128.and": 0x4e,
  "v128.or": 0x50,
  "v128.xor": 0x51,
  "v128.bitselect": 0x52,
  "f32x4.nearest": 0x6a,
  "i16x8.extend_low_i8x16_u": 0x89,
  "i32x4.extend_low_i16x8_u": 0xa9,
  "i32x4.shl": 0xab,
  "i32x4.shr_s": 0xac,
  "i32x4.shr_u": 0xad,
  "i32x4.add": 0xae,
  "i32x4.sub": 0xb1,
  "i32x4.mul": 0xb5,
  "f32x4.sqrt": 0xe3,
  "f32x4.add": 0xe4,
  "f32x4.sub": 0xe5,
  "f32x4.mul": 0xe6,
  "f32x4.div": 0xe7,
  "f32x4.pmin": 0xea,
  "f32x4.pmax": 0xeb,
  "i32x4.trunc_sat_f32x4_s": 0xf8,
  "f32x4.convert_i32x4_s": 0xfa,
  "f32x4.relaxed_madd": 0x105,
} as const;

/** Loads and stores: opcode bytes, then an alignment hint and an offset. */
export const MEMORY_OPS = {
  "i32.load": [0x28],
  "f32.load": [0x2a],
  "f64.load": [0x2b],
  "i32.load8_u": [0x2d],
  "i32.load16_u": [0x2f],
  "i32.store": [0x36],
  "f32.store": [0x38],
  "v128.load": [0xfd, 0x00],
  "v128.load16x4_u": [0xfd, 0x04],
  "v128.load32_splat": [0xfd, 0x09],
  "v128.load64_splat": [0xfd, 0x0a],
  "v128.store": [0xfd, 0x0b],
  "v128.load32_zero": [0xfd, 0x5c],
} as const;

/** Loads and stores of one lane: as above, then the lane. */
export const LANE_MEMORY_OPS = {
  "v128.store8_lane": [0xfd, 0x58],
  "v128.store16_lane": [0xfd, 0x59],
  "v128.store32_lane": [0xfd, 0x5a],
  "v128.store64_lane": [0xfd, 0x5b],
} as const;

/** Instructions with a lane as their only immediate. */
export const LANE_OPS = {
  "i32x4.extract_lane": 0x1b,
} as const;

export type ScalarOp = keyof typeof SCALAR_OPS;
export type VectorOp = keyof typeof VECTOR_OPS;
export type MemoryOp = keyof typeof MEMORY_OPS;
export type LaneMemoryOp = keyof typeof LANE_MEMORY_OPS;
export type LaneOp = keyof typeof LANE_OPS;
