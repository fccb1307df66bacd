/**
 * @file Sixty-four elements of a row at a time between memory and four vectors of f32, in their
 * order: the fast way of quantisation, for ordinary numbers.
 *
 *     read    x0..x3 = the stored values, exactly; elements that do not exist are zero
 *     write   codes = format(x ÷ scale), nearest even, for |x ÷ scale| up to the format's largest
 *
 * A quotient is rounded by one addition: to q is added a power of two, larger than q's own by the
 * places that the fraction drops, and at least that of the format's subnormals. The sum's low bits
 * are the rounded significand, its exponent is the code's but for a constant, and both together
 * make the code modulo 256.
 *
 *     quotient   x · (1 / scale), corrected once by its exact remainder
 *
 * For which scales one correction is enough: `HARD_BITS`. For powers of two none is needed. The
 * sign of a code is that of x, also where the quotient is zero.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type Mask,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import type { OpenDType } from "./contract.ts";
import { FORMATS } from "./reference.ts";
import { emitSplat, floatBits, LANES } from "./x64-codes.ts";

/** Formats with a fast way. */
export type ChunkFormat = "e4m3" | "e5m2";
export type ChunkDType = OpenDType | ChunkFormat;

/** Elements of a chunk. */
export const CHUNK = 64;

/**
 * A corrected quotient can be on the wrong side of the middle between two codes only if the true
 * one is within 7 · 2^-25 units of its last place of a float32 that is half a unit beside that
 * middle. The middle has five significant bits, so the distance is at least j · 2^-25 units, where
 * j is the distance of the scale's significand from a multiple of 2^HARD_BITS; and where j is 0
 * the true quotient is no such number at all. So a scale is hard if 0 < j < `HARD_DISTANCE`.
 */
export const HARD_BITS = 20;
export const HARD_DISTANCE = 8;

export const VALUES: readonly Vector[] = [zmm(0), zmm(1), zmm(2), zmm(3)];
const [quotient, rest, out, signs] = [zmm(4), zmm(5), zmm(6), zmm(7)];
/** Free for whoever reads and writes chunks. */
export const FREE: readonly Vector[] = [zmm(8), zmm(9)];
const [words, high] = [zmm(10), zmm(11)];

/** What stays in registers; 12 to 19 are the scales' and their reciprocals'. */
const CONSTANT = {
  magnitude: zmm(20),
  least: zmm(21),
  exponent: zmm(22),
  shift: zmm(23),
  codeIndex: zmm(24),
  signIndex: zmm(25),
  rebias: zmm(26),
  sign: zmm(27),
  /** Of a bf16 source. */
  evenWords: zmm(28),
  oddWords: zmm(29),
  /** Of codes. */
  codeOrder: zmm(28),
  upperHalf: zmm(29),
  lowTable: zmm(30),
  highTable: zmm(31),
} as const;

/** Magnitudes of f32 are the bits that it has. */
export const MAGNITUDE: Vector = CONSTANT.magnitude;

/** Quarters of 64 bytes behind the first, the halves of words, the elements of a tail. */
const QUARTERS = [k(1), k(2), k(3)] as const;
const upperHalves = k(4);
const tailBytes = k(5);
const tailPart = k(6);

const VECTOR_BYTES = 64;
/** Constants in memory, a vector each. */
const STORED = [
  "codeIndex",
  "signIndex",
  "evenWords",
  "oddWords",
  "codeOrder",
  "lowTable",
  "lowTableEnd",
  "highTable",
  "highTableEnd",
] as const;
type Stored = (typeof STORED)[number];
export const CHUNK_CONSTANTS_BYTES: number = STORED.length * VECTOR_BYTES;

function isCodes(dtype: ChunkDType): dtype is ChunkFormat {
  return dtype === "e4m3" || dtype === "e5m2";
}

/** The constants in memory of code that reads `source`. */
export function chunkConstants(source: ChunkDType): Uint8Array {
  const bf16 = isCodes(source) ? FORMATS[source].values.subarray(0, 128) : new Float32Array(128);
  const value = (code: number): number => toBf16(bf16[code]!);
  const byteOf: Record<Stored, (at: number) => number> = {
    codeIndex: (at) => 4 * (at % LANES),
    signIndex: (at) => 4 * (at % LANES) + 3,
    evenWords: (at) => 2 * (at >> 2) + (at & 1),
    oddWords: (at) => 2 * LANES + 2 * (at >> 2) + (at & 1),
    // Lane L of 16 bytes: 8 for either half of the chunk, which alternate between its vectors.
    codeOrder: (at) => 32 * ((at >> 3) & 1) + 16 * (at & 1) + 4 * (at >> 4) + ((at >> 1) & 3),
    lowTable: (at) => value(at) & 0xff,
    lowTableEnd: (at) => value(64 + at) & 0xff,
    highTable: (at) => value(at) >> 8,
    highTableEnd: (at) => value(64 + at) >> 8,
  };
  return Uint8Array.from({ length: CHUNK_CONSTANTS_BYTES }, (_, index) =>
    byteOf[STORED[Math.floor(index / VECTOR_BYTES)]!](index % VECTOR_BYTES),
  );
}

function stored(constants: Gp, name: Stored): Memory {
  return mem(constants, VECTOR_BYTES * STORED.indexOf(name));
}

/** Loads what reading `source` and writing `target` keep in registers; clobbers rax. */
export function emitChunkConstants(
  a: X64,
  { source, target, constants }: { source: ChunkDType; target: ChunkDType; constants: Gp },
): void {
  for (const [quarter, register] of QUARTERS.entries()) {
    a.mov(r.rax, 0xffff);
    a.shl(r.rax, LANES * (quarter + 1));
    a.kmovq(register, r.rax);
  }
  emitSplat(a, CONSTANT.magnitude, 0x7fffffff);
  if (source === "bf16") {
    a.mov(r.rax, 0xcccccccc);
    a.mov(r.rdx, r.rax);
    a.shl(r.rdx, 32);
    a.or(r.rax, r.rdx);
    a.kmovq(upperHalves, r.rax);
    for (const name of ["evenWords", "oddWords"] as const) {
      a.v("vmovups", [CONSTANT[name], stored(constants, name)]);
    }
  }
  if (isCodes(source)) {
    emitSplat(a, CONSTANT.upperHalf, 0xffff0000);
    for (const name of ["codeOrder", "lowTable", "highTable"] as const) {
      a.v("vmovups", [CONSTANT[name], stored(constants, name)]);
    }
  }
  if (isCodes(source) || isCodes(target)) emitSplat(a, CONSTANT.sign, 0x80808080);
  if (isCodes(target)) emitCodeConstants(a, target, constants);
}

function emitCodeConstants(a: X64, target: ChunkFormat, constants: Gp): void {
  const { fractionBits, bias } = FORMATS[target];
  const dropped = 23 - fractionBits;
  const rebias = (2 ** fractionBits * (bias - 128 - dropped)) & 0xff;
  emitSplat(a, CONSTANT.least, floatBits(2 ** (1 - bias)));
  emitSplat(a, CONSTANT.exponent, 0xff800000);
  emitSplat(a, CONSTANT.shift, floatBits(2 ** dropped));
  emitSplat(a, CONSTANT.rebias, 0x01010101 * rebias);
  for (const name of ["codeIndex", "signIndex"] as const) {
    a.v("vmovups", [CONSTANT[name], stored(constants, name)]);
  }
}

/** The mask of a tail's bytes; rdx has its elements' bits. Clobbers rax. */
export function emitTailMask(a: X64, left: Gp): void {
  a.mov(r.rax, -1);
  a.bzhi(r.rdx, r.rax, left);
  a.kmovq(tailBytes, r.rdx);
}

/** The next elements of a tail, as a mask; moves rdx on by as many. */
function emitTailPart(a: X64, elements: number): Mask {
  if (elements === CHUNK) return zeroing(tailBytes);
  a.kmovd(tailPart, r.rdx);
  a.shr(r.rdx, elements);
  return zeroing(tailPart);
}

/** A place of a chunk; with `isTail` it has the elements of the last `emitTailMask`. */
export interface ChunkPlace {
  readonly at: Gp;
  readonly isTail: boolean;
}

/** `VALUES` = the elements at `at`. Clobbers rdx in a tail. */
export function emitReadChunk(
  a: X64,
  { source, at, isTail, constants }: ChunkPlace & { source: ChunkDType; constants: Gp },
): void {
  const partOf = (elements: number): Mask | null => (isTail ? emitTailPart(a, elements) : null);
  if (source === "f32") {
    for (const [index, value] of VALUES.entries()) {
      a.v("vmovups", [value, mem(at, VECTOR_BYTES * index)], partOf(LANES));
    }
    return;
  }
  if (source === "bf16") {
    for (let half = 0; half < 2; half++) {
      a.v("vmovdqu16", [words, mem(at, VECTOR_BYTES * half)], partOf(2 * LANES));
      const [even, odd] = [VALUES[2 * half]!, VALUES[2 * half + 1]!];
      a.v("vpermb", [even, CONSTANT.evenWords, words], zeroing(upperHalves));
      a.v("vpermb", [odd, CONSTANT.oddWords, words], zeroing(upperHalves));
    }
    return;
  }
  a.v("vmovdqu8", [signs, mem(at)], partOf(CHUNK));
  emitWidenCodes(a, constants);
}

/** `VALUES` = what the codes in `signs` stand for; by tables of the halves of bf16. */
function emitWidenCodes(a: X64, constants: Gp): void {
  const [low, ordered] = [rest, quotient];
  a.v("vpermb", [ordered, CONSTANT.codeOrder, signs]);
  a.v("vmovaps", [high, ordered]);
  a.v("vmovaps", [low, ordered]);
  a.v("vpermi2b", [high, CONSTANT.highTable, stored(constants, "highTableEnd")]);
  a.v("vpermi2b", [low, CONSTANT.lowTable, stored(constants, "lowTableEnd")]);
  // high | (code & its sign)
  a.v("vpternlogd", [high, ordered, CONSTANT.sign, 0xf8]);
  for (const [half, op] of (["vpunpcklbw", "vpunpckhbw"] as const).entries()) {
    a.v(op, [words, low, high]);
    a.v("vpslld", [VALUES[2 * half]!, words, 16]);
    a.v("vpandd", [VALUES[2 * half + 1]!, words, CONSTANT.upperHalf]);
  }
}

/** A divisor of each of `VALUES`. */
export interface Divisors {
  readonly scales: readonly Vector[];
  readonly reciprocals: readonly Vector[];
  /** Whether all scales are powers of two. */
  readonly areExact: boolean;
}

/** The codes of `VALUES` ÷ scales, to `at`. The values have been read from `source`. */
export function emitWriteCodes(
  a: X64,
  place: ChunkPlace,
  { source, target }: { source: ChunkDType; target: ChunkFormat },
  { scales, reciprocals, areExact }: Divisors,
): void {
  const dropped = 23 - FORMATS[target].fractionBits;
  for (const [index, value] of VALUES.entries()) {
    const [divisor, reciprocal] = [scales[index]!, reciprocals[index]!];
    a.v("vmulps", [quotient, value, reciprocal]);
    if (!areExact) {
      a.v("vmovaps", [rest, value]);
      a.v("vfnmadd231ps", [rest, quotient, divisor]);
      a.v("vfmadd231ps", [quotient, rest, reciprocal]);
    }
    const sum = rest;
    a.v("vrangeps", [sum, quotient, CONSTANT.least, 3]);
    a.v("vpandd", [sum, sum, CONSTANT.exponent]);
    a.v("vfmadd213ps", [sum, CONSTANT.shift, quotient]);
    a.v("vpsrld", [quotient, sum, dropped]);
    a.v("vpaddd", [quotient, quotient, sum]);
    const quarter = index === 0 ? null : merging(QUARTERS[index - 1]!);
    a.v("vpermb", [out, CONSTANT.codeIndex, quotient], quarter);
    if (!isCodes(source)) a.v("vpermb", [signs, CONSTANT.signIndex, value], quarter);
  }
  a.v("vpaddb", [out, out, CONSTANT.rebias]);
  // out | (sign & its bit)
  a.v("vpternlogd", [out, signs, CONSTANT.sign, 0xf8]);
  a.v("vmovdqu8", [mem(place.at), out], place.isTail ? merging(tailBytes) : null);
}

/** Sixty-four values, a vector of `values` after the other, to `at`. Clobbers rdx in a tail. */
export function emitWriteFloats(
  a: X64,
  { at, isTail }: ChunkPlace,
  values: readonly Vector[],
): void {
  for (const [index, value] of values.entries()) {
    if (isTail) emitTailPart(a, LANES);
    a.v("vmovups", [mem(at, VECTOR_BYTES * index), value], isTail ? merging(tailPart) : null);
  }
}
