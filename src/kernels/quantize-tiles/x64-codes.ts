/**
 * @file Sixteen elements at a time between memory and registers, whatever they are stored as: f32,
 * bf16, E4M3, E5M2 or packed E5M6. What reading and writing share is here: registers, constants.
 *
 *     read    out = the stored value, exactly; elements that do not exist are zero
 *     write   code = format(x): one rounding to nearest even, as numerics/small-float.ts does
 *
 * A magnitude that is a normal number of the format is rounded by integer addition at the
 * fraction's last kept bit. A smaller one is added to a power of two whose last bit is the format's
 * smallest subnormal: the float32 addition rounds it, and the sum's low bits are the code.
 */
import { assert } from "../../base/errors.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type MaskRegister,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  ymm,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import type { SmallFloat } from "../../numerics/small-float.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import {
  emitWiden,
  type Fp8SourceDType,
  WIDENING_BYTES,
  wideningConstants,
} from "../matmul/x64-widen.ts";
import type { OpenDType } from "./contract.ts";
import { FORMATS } from "./reference.ts";

export type StoredDType = OpenDType | ScaledFormat;

/** Elements of a vector. */
export const LANES = 16;

/** Registers that hold constants while a kernel runs. */
const CONSTANT = {
  magnitude: zmm(16),
  one: zmm(17),
  half: zmm(18),
  rebias: zmm(19),
  magic: zmm(20),
  leastNormal: zmm(21),
  clamp: zmm(22),
  infinity: zmm(23),
  nan: zmm(24),
  sign: zmm(25),
  packedBytes: zmm(26),
  unpackedBytes: zmm(27),
  unpackShift: zmm(28),
  low12: zmm(29),
} as const;

/** The lanes of a vector that exist, and the bytes of packed codes that they take. */
export const LANE_MASK: MaskRegister = k(1);
const PACKED_MASK = k(2);
const [isSubnormal, isNan] = [k(3), k(4)];

/** Bytes of `count` elements in a row. */
export function storedBytes(dtype: StoredDType, count: number): number {
  if (dtype === "e5m6") return Math.ceil((count * 3) / 2);
  return count * { f32: 4, bf16: 2, e4m3: 1, e5m2: 1 }[dtype];
}

function isFp8(dtype: StoredDType): dtype is Fp8SourceDType {
  return dtype === "e4m3" || dtype === "e5m2";
}

const INDEX_BYTES = 64;
/** Where the constants in memory stand: those of widening, then masks and indexes for E5M6. */
const MASKS_AT = WIDENING_BYTES;
const PACK_AT = MASKS_AT + 8 * (LANES + 8);
const UNPACK_AT = PACK_AT + INDEX_BYTES;
const SHIFT_AT = UNPACK_AT + INDEX_BYTES;
export const CONSTANTS_BYTES: number = SHIFT_AT + INDEX_BYTES;

/** The constants that code reading `source` and writing `target` wants in memory. */
export function codeConstants(source: StoredDType): Uint8Array {
  const bytes = new Uint8Array(CONSTANTS_BYTES);
  const view = new DataView(bytes.buffer);
  if (isFp8(source)) bytes.set(new Uint8Array(wideningConstants(source).buffer));
  for (let count = 0; count <= LANES; count++) {
    view.setUint32(MASKS_AT + 8 * count, 2 ** storedBytes("e5m6", count) - 1, true);
  }
  // Three bytes of each 64-bit word, and the two bytes that each code lies in.
  for (let at = 0; at < 24; at++) bytes[PACK_AT + at] = 8 * Math.floor(at / 3) + (at % 3);
  for (let lane = 0; lane < LANES; lane++) {
    const first = Math.floor((3 * lane) / 2);
    // Byte 63 is beyond the 24 that are read: zero.
    bytes.set([first, first + 1, 63, 63], UNPACK_AT + 4 * lane);
    view.setUint32(SHIFT_AT + 4 * lane, lane % 2 === 0 ? 0 : 4, true);
  }
  return bytes;
}

const float = new Float32Array(1);
const floatWord = new Uint32Array(float.buffer);

/** The bits of a float32. */
export function floatBits(value: number): number {
  float[0] = value;
  return floatWord[0]!;
}

/** Emits: every lane of `to` = 32 bits. Clobbers rax. */
export function emitSplat(a: X64, to: Vector, bits: number): void {
  a.mov(r.rax, bits | 0);
  a.v("vpbroadcastd r32", [to, r.rax]);
}

/** Loads the constants of reading `source` and writing `target`; clobbers rax. */
export function emitCodeConstants(
  a: X64,
  { source, target, constants }: { source: StoredDType; target: StoredDType; constants: Gp },
): void {
  emitSplat(a, CONSTANT.magnitude, 0x7fffffff);
  if (source === "e5m6" || target === "e5m6") {
    a.v("vmovups", [CONSTANT.packedBytes, mem(constants, PACK_AT)]);
    a.v("vmovups", [CONSTANT.unpackedBytes, mem(constants, UNPACK_AT)]);
    a.v("vmovups", [CONSTANT.unpackShift, mem(constants, SHIFT_AT)]);
    emitSplat(a, CONSTANT.low12, 0xfff);
  }
  if (target === "f32") return;
  if (target === "bf16") {
    emitSplat(a, CONSTANT.one, 1);
    emitSplat(a, CONSTANT.half, 0x7fff);
    emitSplat(a, CONSTANT.nan, 0x400000);
    return;
  }
  const format = FORMATS[target];
  const drop = 23 - format.fractionBits;
  emitSplat(a, CONSTANT.one, 1);
  emitSplat(a, CONSTANT.half, 2 ** (drop - 1) - 1);
  emitSplat(a, CONSTANT.rebias, (127 - format.bias) * 2 ** format.fractionBits);
  emitSplat(a, CONSTANT.magic, magicBits(format));
  emitSplat(a, CONSTANT.leastNormal, (128 - format.bias) * 2 ** 23);
  emitSplat(a, CONSTANT.clamp, clampCode(format));
  emitSplat(a, CONSTANT.infinity, 0x7f800000);
  emitSplat(a, CONSTANT.nan, format.nanCode);
  emitSplat(a, CONSTANT.sign, format.signBit);
}

/** The float32 whose last bit is the format's smallest subnormal. */
function magicBits({ bias, fractionBits }: SmallFloat): number {
  return (127 + 23 + (1 - bias - fractionBits)) * 2 ** 23;
}

/** The code of everything too large: it follows the largest, or is it. */
function clampCode({ overflowCode, largestCode }: SmallFloat): number {
  assert(overflowCode - largestCode <= 1, "overflow has the largest code or the next one");
  return overflowCode;
}

/** Masks of sixteen elements that all exist; clobbers rax. */
export function emitAllLanes(a: X64, isPacked: boolean): void {
  a.mov(r.rax, 2 ** storedBytes("e5m6", LANES) - 1);
  a.kmovw(LANE_MASK, r.rax);
  if (isPacked) a.kmovd(PACKED_MASK, r.rax);
}

/** Masks of the next min(left, 16) elements; clobbers rax and rdx. */
export function emitLanes(
  a: X64,
  { left, constants, isPacked }: { left: Gp; constants: Gp; isPacked: boolean },
): void {
  a.mov(r.rdx, LANES);
  a.cmp(left, r.rdx);
  a.cmov("l", r.rdx, left);
  a.mov(r.rax, -1);
  a.bzhi(r.rax, r.rax, r.rdx);
  a.kmovw(LANE_MASK, r.rax);
  if (!isPacked) return;
  a.mov(r.rax, mem(constants, MASKS_AT, r.rdx, 8));
  a.kmovd(PACKED_MASK, r.rax);
}

/** to = the values at `from`, of the lanes that exist; clobbers zmm30 and zmm31. */
export function emitRead(
  a: X64,
  { source, to, from, constants }: { source: StoredDType; to: Vector; from: Memory; constants: Gp },
): void {
  const lanes = zeroing(LANE_MASK);
  if (source === "f32") {
    a.v("vmovups", [to, from], lanes);
    return;
  }
  if (source === "e5m6") {
    emitUnpack(a, to, from);
    return;
  }
  if (isFp8(source)) {
    a.v("vpmovzxbd", [to, from], lanes);
    emitWiden(a, to, source, constants);
  } else a.v("vpmovzxwd", [to, from], lanes);
  a.v("vpslld", [to, to, 16]);
}

/** An E5M6 code is the upper twelve bits of a binary16. */
function emitUnpack(a: X64, to: Vector, from: Memory): void {
  const words = zmm(30);
  a.v("vmovdqu8", [words, from], zeroing(PACKED_MASK));
  a.v("vpermb", [words, CONSTANT.unpackedBytes, words]);
  a.v("vpsrlvd", [words, words, CONSTANT.unpackShift]);
  a.v("vpandd", [words, words, CONSTANT.low12]);
  a.v("vpslld", [words, words, 4]);
  a.v("vpmovdw", [ymm(30), words]);
  a.v("vcvtph2ps", [to, ymm(30)]);
}

/**
 * The codes of x, of the lanes that exist, to `to`; their signs are those of `signs`, which is x if
 * left out. Clobbers x, zmm2 to zmm5 and k3, k4.
 */
export function emitWrite(
  a: X64,
  {
    target,
    x,
    signs = x,
    to,
  }: {
    readonly target: StoredDType;
    readonly x: Vector;
    readonly signs?: Vector;
    readonly to: Memory;
  },
): void {
  const lanes = merging(LANE_MASK);
  if (target === "f32") {
    a.v("vmovups", [to, x], lanes);
    return;
  }
  if (target === "bf16") {
    emitRoundToBf16(a, x);
    a.v("vpmovdw", [to, x], lanes);
    return;
  }
  emitEncode(a, FORMATS[target], x, signs);
  if (target !== "e5m6") {
    a.v("vpmovdb", [to, x], lanes);
    return;
  }
  const shifted = zmm(2);
  // A lane that does not exist has the code of zero, so the odd half byte is zero.
  a.v("vpsrlq", [shifted, x, 20]);
  a.v("vpord", [x, x, shifted]);
  a.v("vpermb", [x, CONSTANT.packedBytes, x]);
  a.v("vmovdqu8", [to, x], merging(PACKED_MASK));
}

function emitEncode(a: X64, format: SmallFloat, x: Vector, signs: Vector): void {
  const [sign, magnitude, code, small] = [zmm(2), zmm(3), zmm(4), zmm(5)];
  const drop = 23 - format.fractionBits;
  a.v("vpsrld", [sign, signs, 31 - Math.log2(format.signBit)]);
  a.v("vpandd", [magnitude, x, CONSTANT.magnitude]);
  a.v("vpsrld", [code, magnitude, drop]);
  a.v("vpandd", [code, code, CONSTANT.one]);
  a.v("vpaddd", [code, code, CONSTANT.half]);
  a.v("vpaddd", [code, code, magnitude]);
  a.v("vpsrld", [code, code, drop]);
  a.v("vpsubd", [code, code, CONSTANT.rebias]);
  a.v("vaddps", [small, magnitude, CONSTANT.magic]);
  a.v("vpsubd", [small, small, CONSTANT.magic]);
  a.v("vpcmpud", [isSubnormal, magnitude, CONSTANT.leastNormal, 1]);
  a.v("vpblendmd", [code, code, small], merging(isSubnormal));
  a.v("vpminud", [code, code, CONSTANT.clamp]);
  a.v("vpcmpud", [isNan, magnitude, CONSTANT.infinity, 6]);
  a.v("vpblendmd", [x, code, CONSTANT.nan], merging(isNan));
  // x | (sign & its bit)
  a.v("vpternlogd", [x, sign, CONSTANT.sign, 0xf8]);
}

/** Each lane's low half = the bf16 nearest to it, ties to even; NaN stays NaN. */
function emitRoundToBf16(a: X64, x: Vector): void {
  const [rounded, quiet] = [zmm(2), zmm(3)];
  a.v("vpsrld", [rounded, x, 16]);
  a.v("vpandd", [rounded, rounded, CONSTANT.one]);
  a.v("vpaddd", [rounded, rounded, CONSTANT.half]);
  a.v("vpaddd", [rounded, rounded, x]);
  a.v("vpord", [quiet, x, CONSTANT.nan]);
  a.v("vcmpps", [isNan, x, x, 3]);
  a.v("vpblendmd", [x, rounded, quiet], merging(isNan));
  a.v("vpsrld", [x, x, 16]);
}
