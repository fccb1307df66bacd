/**
 * @file FP8 codes to bf16 in registers, exactly: what packing does to scaled operands, but for
 * tiles (scaled-matmul/x64-code-tables.ts).
 *
 *     word (16 bits) = code  →  word = bf16 of its value
 *
 * Sign, exponent and fraction move to their places of a bf16 and the exponent gets another bias; a
 * subnormal code, which is a normal bf16, comes from a table of a few words; NaN and E5M2's
 * infinity, whose exponent is the format's largest, get the bias twice, which makes the exponent
 * bf16's largest. E4M3's largest exponent also belongs to numbers: there the NaN code alone does.
 *
 * The constants are vectors in memory, so that no register is tied to them.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { type Gp, k, mem, merging, type Vector, zmm } from "../../codegen/x64/operands.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";

/** Operands in eight bits. */
export type Fp8SourceDType = "e4m3" | "e5m2";

interface Fp8Layout {
  readonly fractionBits: 2 | 3;
  readonly exponentBias: number;
  /** The least magnitude that is no number. */
  readonly firstSpecial: number;
  readonly values: Float32Array;
}

const LAYOUTS: Readonly<Record<Fp8SourceDType, Fp8Layout>> = {
  e4m3: { fractionBits: 3, exponentBias: 7, firstSpecial: 0x7f, values: E4M3.values },
  e5m2: { fractionBits: 2, exponentBias: 15, firstSpecial: 0x7c, values: E5M2.values },
};

const BF16_FRACTION_BITS = 7;
const BF16_BIAS = 127;

/** Order of the vectors of constants. */
const CONSTANTS = ["magnitude", "leastNormal", "special", "bias", "sign", "subnormals"] as const;
const VECTOR_BYTES = 64;
export const WIDENING_BYTES: number = CONSTANTS.length * VECTOR_BYTES;

/** Bits that a code moves up by. */
function shiftOf({ fractionBits }: Fp8Layout): number {
  return BF16_FRACTION_BITS - fractionBits;
}

/** The constants of a format, for `emitWiden` to read. */
export function wideningConstants(source: Fp8SourceDType): Uint16Array {
  const layout = LAYOUTS[source];
  const shift = shiftOf(layout);
  const words: Record<(typeof CONSTANTS)[number], (lane: number) => number> = {
    magnitude: () => 0x7f << shift,
    leastNormal: () => 1 << BF16_FRACTION_BITS,
    special: () => layout.firstSpecial << shift,
    bias: () => (BF16_BIAS - layout.exponentBias) << BF16_FRACTION_BITS,
    sign: () => 0x8000,
    subnormals: (lane) => (lane >> layout.fractionBits > 0 ? 0 : toBf16(layout.values[lane]!)),
  };
  const lanes = VECTOR_BYTES / 2;
  return Uint16Array.from({ length: CONSTANTS.length * lanes }, (_, index) =>
    words[CONSTANTS[Math.floor(index / lanes)]!](index % lanes),
  );
}

/** Codes in the words of `x` become bf16; clobbers zmm31, k5 and k6. Constants at `constants`. */
export function emitWiden(a: X64, x: Vector, source: Fp8SourceDType, constants: Gp): void {
  const constant = (name: (typeof CONSTANTS)[number]) =>
    mem(constants, CONSTANTS.indexOf(name) * VECTOR_BYTES);
  const magnitude = zmm(31);
  const [isSpecial, isSubnormal] = [k(5), k(6)];
  a.v("vpsllw", [magnitude, x, shiftOf(LAYOUTS[source])]);
  a.v("vpandd", [magnitude, magnitude, constant("magnitude")]);
  a.v("vpcmpuw", [isSpecial, magnitude, constant("special"), 5]);
  a.v("vpcmpuw", [isSubnormal, magnitude, constant("leastNormal"), 1]);
  a.v("vpaddw", [magnitude, magnitude, constant("bias")]);
  a.v("vpaddw", [magnitude, magnitude, constant("bias")], merging(isSpecial));
  // The fraction alone indexes the table: the other bits of a subnormal's index are zero.
  a.v("vpermw", [magnitude, x, constant("subnormals")], merging(isSubnormal));
  a.v("vpsllw", [x, x, 8]);
  // x = magnitude | (x & sign)
  a.v("vpternlogd", [x, magnitude, constant("sign"), 0xec]);
}
