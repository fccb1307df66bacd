/**
 * @file The vector instructions (AVX-512, EVEX-encoded): one row an instruction, named as the
 * manual names it.
 *
 * A row is [operand form, encoding, memory operand, meaning]. The encoding is the manual's own
 * notation without the parts that every row shares: `66.0F38.W0 B8` is `EVEX.66.0F38.W0 B8 /r`,
 * `/6` is an opcode digit, `10|11` the opcodes of load and store. The memory operand says how many
 * bytes are read or written, which is also the unit of short displacements (disp8×N, SDM volume 2,
 * section 2.7.5). An instruction whose meaning depends on the operand kind has the kind in its name
 * after a space. Immediate rounding, suppression of exceptions and gathers are left out: no kernel
 * needs them.
 *
 * Source: SDM volume 2, one page an instruction, under its name.
 */
import type { Gp, MaskRegister, Memory, Vector } from "./operands.ts";

/**
 * Operands by form: r = register written, v = first source, m = register or memory, i = imm8, k =
 * mask, g = general.
 */
export interface OperandsByForm {
  rvm: readonly [Vector, Vector, Vector | Memory];
  rvmi: readonly [Vector, Vector, Vector | Memory, number];
  rm: readonly [Vector, Vector | Memory];
  rmi: readonly [Vector, Vector | Memory, number];
  mr: readonly [Vector | Memory, Vector];
  mri: readonly [Vector | Memory, Vector, number];
  move: readonly [Vector, Vector | Memory] | readonly [Memory, Vector];
  store: readonly [Memory, Vector];
  vmi: readonly [Vector, Vector | Memory, number];
  kvm: readonly [MaskRegister, Vector, Vector | Memory];
  kvmi: readonly [MaskRegister, Vector, Vector | Memory, number];
  kmi: readonly [MaskRegister, Vector | Memory, number];
  rg: readonly [Vector, Gp];
  mg: readonly [Gp, Vector];
  gm: readonly [Gp, Vector | Memory];
  rvg: readonly [Vector, Vector, Gp | Memory];
  rk: readonly [Vector, MaskRegister];
  kr: readonly [MaskRegister, Vector];
}

export type Form = keyof OperandsByForm;

/**
 * Bytes of a memory operand: `full` is the vector's (32 or 64: the element a broadcast repeats),
 * `half` … its parts, a number of bytes is fixed, `none` takes no memory.
 */
export type MemoryWidth =
  | ("full" | "full32" | "full64" | "half" | "quarter" | "none")
  | ("2" | "4" | "8" | "16" | "32");

/** A row of the table: form, encoding, memory operand, meaning. */
export type Row = readonly [Form, string, MemoryWidth, string];

export const INSTRUCTIONS = {
  // Moves
  vmovups: ["move", "0F.W0 10|11", "full", "load or store f32"],
  vmovupd: ["move", "66.0F.W1 10|11", "full", "load or store f64"],
  vmovaps: ["move", "0F.W0 28|29", "full", "load or store f32, aligned"],
  vmovdqu8: ["move", "F2.0F.W0 6F|7F", "full", "load or store bytes"],
  vmovdqu16: ["move", "F2.0F.W1 6F|7F", "full", "load or store 16-bit words"],
  vmovdqu32: ["move", "F3.0F.W0 6F|7F", "full", "load or store 32-bit words"],
  vmovntps: ["store", "0F.W0 2B", "full", "store around the caches"],
  "vmovss m32": ["move", "F3.0F.W0 10|11", "4", "load or store one f32"],
  "vmovsd m64": ["move", "F2.0F.W1 10|11", "8", "load or store one f64"],
  vmovd: ["rg", "66.0F.W0 6E", "none", "low lane = 32 bits of a general register"],
  vmovq: ["rg", "66.0F.W1 6E", "none", "low lane = a general register"],
  "vmovd r32": ["mg", "66.0F.W0 7E", "none", "general register = low 32 bits"],
  "vmovq r64": ["mg", "66.0F.W1 7E", "none", "general register = low 64 bits"],
  vbroadcastss: ["rm", "66.0F38.W0 18", "4", "every lane = one f32"],
  vbroadcastsd: ["rm", "66.0F38.W1 19", "8", "every lane = one f64"],
  vpbroadcastd: ["rm", "66.0F38.W0 58", "4", "every lane = one 32-bit word"],
  vpbroadcastw: ["rm", "66.0F38.W0 79", "2", "every lane = one 16-bit word"],
  "vpbroadcastd r32": ["rg", "66.0F38.W0 7C", "none", "every lane = a general register"],
  "vpbroadcastw r32": ["rg", "66.0F38.W0 7B", "none", "every lane = 16 bits of a register"],
  vbroadcastf32x4: ["rm", "66.0F38.W0 1A", "16", "every quarter = four f32 of memory"],

  // f32 arithmetic
  vaddps: ["rvm", "0F.W0 58", "full32", "a + b"],
  vsubps: ["rvm", "0F.W0 5C", "full32", "a - b"],
  vmulps: ["rvm", "0F.W0 59", "full32", "a × b"],
  vdivps: ["rvm", "0F.W0 5E", "full32", "a ÷ b"],
  vminps: ["rvm", "0F.W0 5D", "full32", "a < b ? a : b (b if either is NaN)"],
  vmaxps: ["rvm", "0F.W0 5F", "full32", "a > b ? a : b (b if either is NaN)"],
  vsqrtps: ["rm", "0F.W0 51", "full32", "√a"],
  vfmadd132ps: ["rvm", "66.0F38.W0 98", "full32", "dst = dst × b + a"],
  vfmadd213ps: ["rvm", "66.0F38.W0 A8", "full32", "dst = a × dst + b"],
  vfmadd231ps: ["rvm", "66.0F38.W0 B8", "full32", "dst = a × b + dst"],
  vfmsub213ps: ["rvm", "66.0F38.W0 AA", "full32", "dst = a × dst - b"],
  vfmsub231ps: ["rvm", "66.0F38.W0 BA", "full32", "dst = a × b - dst"],
  vfnmadd213ps: ["rvm", "66.0F38.W0 AC", "full32", "dst = -(a × dst) + b"],
  vfnmadd231ps: ["rvm", "66.0F38.W0 BC", "full32", "dst = -(a × b) + dst"],
  vrsqrt14ps: ["rm", "66.0F38.W0 4E", "full32", "1 ÷ √a to 14 bits"],
  vrcp14ps: ["rm", "66.0F38.W0 4C", "full32", "1 ÷ a to 14 bits"],
  vscalefps: ["rvm", "66.0F38.W0 2C", "full32", "a × 2^⌊b⌋"],
  vgetexpps: ["rm", "66.0F38.W0 42", "full32", "exponent of a, as f32"],
  vgetmantps: ["rmi", "66.0F3A.W0 26", "full32", "mantissa of a, in the interval imm names"],
  vrndscaleps: [
    "rmi",
    "66.0F3A.W0 08",
    "full32",
    "round; imm 0 nearest even, 1 down, 2 up, 3 to 0",
  ],
  vrangeps: [
    "rvmi",
    "66.0F3A.W0 50",
    "full32",
    "imm 3: the larger magnitude of a and b, with the sign of a",
  ],
  vcmpps: [
    "kvmi",
    "0F.W0 C2",
    "full32",
    "compare: imm 0 =, 1 <, 2 ≤, 3 unordered, 4 ≠, 5 !<, 6 !≤, 7 ordered",
  ],
  vfpclassps: [
    "kmi",
    "66.0F3A.W0 66",
    "full32",
    "is a of the classes in imm (1 and 128: NaN; 8 and 16: ∞)",
  ],
  vblendmps: ["rvm", "66.0F38.W0 65", "full32", "mask ? b : a"],

  // f64 arithmetic, for sums and scalars
  vaddpd: ["rvm", "66.0F.W1 58", "full64", "a + b"],
  vsubpd: ["rvm", "66.0F.W1 5C", "full64", "a - b"],
  vmulpd: ["rvm", "66.0F.W1 59", "full64", "a × b"],
  vdivpd: ["rvm", "66.0F.W1 5E", "full64", "a ÷ b"],
  vfmadd231pd: ["rvm", "66.0F38.W1 B8", "full64", "dst = a × b + dst"],
  vaddss: ["rvm", "F3.0F.W0 58", "4", "low lane: a + b"],
  vsubss: ["rvm", "F3.0F.W0 5C", "4", "low lane: a - b"],
  vmulss: ["rvm", "F3.0F.W0 59", "4", "low lane: a × b"],
  vdivss: ["rvm", "F3.0F.W0 5E", "4", "low lane: a ÷ b"],
  vmaxss: ["rvm", "F3.0F.W0 5F", "4", "low lane: a > b ? a : b"],
  vsqrtss: ["rvm", "F3.0F.W0 51", "4", "low lane: √b, the rest a"],

  // Conversions
  vcvtps2dq: ["rm", "66.0F.W0 5B", "full32", "f32 to i32, nearest even"],
  vcvttps2dq: ["rm", "F3.0F.W0 5B", "full32", "f32 to i32, towards 0"],
  vcvtdq2ps: ["rm", "0F.W0 5B", "full32", "i32 to f32"],
  vcvtudq2ps: ["rm", "F2.0F.W0 7A", "full32", "u32 to f32"],
  vcvtps2pd: ["rm", "0F.W0 5A", "half", "f32 to f64"],
  vcvtpd2ps: ["rm", "66.0F.W1 5A", "full64", "f64 to f32"],
  vcvtsd2ss: ["rvm", "F2.0F.W1 5A", "8", "low lane: f64 to f32, the rest a"],
  vcvtss2sd: ["rvm", "F3.0F.W0 5A", "4", "low lane: f32 to f64, the rest a"],
  vcvttsd2si: ["gm", "F2.0F.W1 2C", "8", "one f64 to a 64-bit integer, towards 0"],
  vcvttss2si: ["gm", "F3.0F.W1 2C", "4", "one f32 to a 64-bit integer, towards 0"],
  vcvtsi2ss: ["rvg", "F3.0F.W1 2A", "8", "low lane: a 64-bit integer to f32, the rest a"],
  vcvtsi2sd: ["rvg", "F2.0F.W1 2A", "8", "low lane: a 64-bit integer to f64, the rest a"],
  vcvtph2ps: ["rm", "66.0F38.W0 13", "half", "f16 to f32, subnormals too"],
  vcvtneps2bf16: ["rm", "F3.0F38.W0 72", "full32", "f32 to bf16, nearest even, subnormals to 0"],
  vcvtne2ps2bf16: [
    "rvm",
    "F2.0F38.W0 72",
    "full32",
    "f32 to bf16: b in the low half, a in the high",
  ],
  vpmovzxbw: ["rm", "66.0F38.W0 30", "half", "u8 to u16"],
  vpmovzxbd: ["rm", "66.0F38.W0 31", "quarter", "u8 to u32"],
  vpmovzxwd: ["rm", "66.0F38.W0 33", "half", "u16 to u32"],
  vpmovsxbd: ["rm", "66.0F38.W0 21", "quarter", "i8 to i32"],
  vpmovsxwd: ["rm", "66.0F38.W0 23", "half", "i16 to i32"],
  vpmovdb: ["mr", "F3.0F38.W0 31", "quarter", "low 8 bits of each 32-bit word"],
  vpmovdw: ["mr", "F3.0F38.W0 33", "half", "low 16 bits of each 32-bit word"],
  vpmovwb: ["mr", "F3.0F38.W0 30", "half", "low 8 bits of each 16-bit word"],
  vpmovusdb: ["mr", "F3.0F38.W0 11", "quarter", "u32 to u8, clamped at 255"],
  vpmovsdb: ["mr", "F3.0F38.W0 21", "quarter", "i32 to i8, clamped"],
  vpmovusdw: ["mr", "F3.0F38.W0 13", "half", "u32 to u16, clamped at 65535"],

  // Integers and bits
  vpaddd: ["rvm", "66.0F.W0 FE", "full32", "a + b"],
  vpsubd: ["rvm", "66.0F.W0 FA", "full32", "a - b"],
  vpmulld: ["rvm", "66.0F38.W0 40", "full32", "low 32 bits of a × b"],
  vpaddw: ["rvm", "66.0F.W0 FD", "full", "a + b, 16-bit"],
  vpsubw: ["rvm", "66.0F.W0 F9", "full", "a - b, 16-bit"],
  vpaddb: ["rvm", "66.0F.W0 FC", "full", "a + b, 8-bit"],
  vpminsd: ["rvm", "66.0F38.W0 39", "full32", "the smaller, signed"],
  vpmaxsd: ["rvm", "66.0F38.W0 3D", "full32", "the larger, signed"],
  vpminud: ["rvm", "66.0F38.W0 3B", "full32", "the smaller, unsigned"],
  vpmaxud: ["rvm", "66.0F38.W0 3F", "full32", "the larger, unsigned"],
  vpabsd: ["rm", "66.0F38.W0 1E", "full32", "|a|"],
  vpandd: ["rvm", "66.0F.W0 DB", "full32", "a and b"],
  vpandnd: ["rvm", "66.0F.W0 DF", "full32", "(not a) and b"],
  vpord: ["rvm", "66.0F.W0 EB", "full32", "a or b"],
  vpxord: ["rvm", "66.0F.W0 EF", "full32", "a xor b"],
  vpternlogd: [
    "rvmi",
    "66.0F3A.W0 25",
    "full32",
    "any function of (dst, a, b): bit of imm at 4·dst + 2·a + b",
  ],
  vpslld: ["vmi", "66.0F.W0 72 /6", "full32", "shift left by imm"],
  vpsrld: ["vmi", "66.0F.W0 72 /2", "full32", "shift right by imm, unsigned"],
  vpsrad: ["vmi", "66.0F.W0 72 /4", "full32", "shift right by imm, signed"],
  vpsrlq: ["vmi", "66.0F.W1 73 /2", "full64", "shift right by imm, unsigned, 64-bit"],
  vpsllw: ["vmi", "66.0F.W0 71 /6", "full", "shift left by imm, 16-bit"],
  vpsrlw: ["vmi", "66.0F.W0 71 /2", "full", "shift right by imm, unsigned, 16-bit"],
  vpsllvd: ["rvm", "66.0F38.W0 47", "full32", "a << b, lane by lane"],
  vpsrlvd: ["rvm", "66.0F38.W0 45", "full32", "a >>> b, lane by lane"],
  vpsravd: ["rvm", "66.0F38.W0 46", "full32", "a >> b, lane by lane"],
  vpcmpd: ["kvmi", "66.0F3A.W0 1F", "full32", "compare signed: imm 0 =, 1 <, 2 ≤, 4 ≠, 5 ≥, 6 >"],
  vpcmpud: ["kvmi", "66.0F3A.W0 1E", "full32", "compare unsigned: imm as vpcmpd"],
  vpcmpuw: ["kvmi", "66.0F3A.W1 3E", "full", "compare unsigned 16-bit: imm as vpcmpd"],
  vptestmd: ["kvm", "66.0F38.W0 27", "full32", "(a and b) ≠ 0"],
  vpblendmd: ["rvm", "66.0F38.W0 64", "full32", "mask ? b : a"],
  vpblendmw: ["rvm", "66.0F38.W1 66", "full", "mask ? b : a, 16-bit"],
  vpmovm2d: ["rk", "F3.0F38.W0 38", "none", "all ones where the mask is set"],
  vpmovd2m: ["kr", "F3.0F38.W0 39", "none", "sign bits"],

  // Moving lanes
  vpshufd: ["rmi", "66.0F.W0 70", "full32", "permute within 128 bits by imm"],
  vpermilps: ["rmi", "66.0F3A.W0 04", "full32", "permute within 128 bits by imm"],
  vshufps: ["rvmi", "0F.W0 C6", "full32", "two of a, then two of b, within 128 bits"],
  vshuff32x4: ["rvmi", "66.0F3A.W0 23", "full32", "two quarters of a, then two of b"],
  vshufi32x4: ["rvmi", "66.0F3A.W0 43", "full32", "two quarters of a, then two of b"],
  vpermd: ["rvm", "66.0F38.W0 36", "full32", "lane i = b[a[i]]"],
  vpermps: ["rvm", "66.0F38.W0 16", "full32", "lane i = b[a[i]]"],
  vpermb: ["rvm", "66.0F38.W0 8D", "full", "lane i = b[a[i]], 8-bit (AVX512_VBMI)"],
  vpermw: ["rvm", "66.0F38.W1 8D", "full", "lane i = b[a[i]], 16-bit"],
  vpermt2d: ["rvm", "66.0F38.W0 7E", "full32", "lane i = (dst, b)[a[i]]"],
  vpermt2w: ["rvm", "66.0F38.W1 7D", "full", "lane i = (dst, b)[a[i]], 16-bit"],
  vpermi2w: ["rvm", "66.0F38.W1 75", "full", "lane i = (a, b)[dst[i]], 16-bit"],
  vpermi2b: ["rvm", "66.0F38.W0 75", "full", "lane i = (a, b)[dst[i]], 8-bit (AVX512_VBMI)"],
  vunpcklps: ["rvm", "0F.W0 14", "full32", "interleave the low halves of each 128 bits"],
  vunpckhps: ["rvm", "0F.W0 15", "full32", "interleave the high halves of each 128 bits"],
  vpunpckldq: ["rvm", "66.0F.W0 62", "full32", "interleave low 32-bit words of each 128 bits"],
  vpunpckhdq: ["rvm", "66.0F.W0 6A", "full32", "interleave high 32-bit words of each 128 bits"],
  vpunpcklqdq: ["rvm", "66.0F.W1 6C", "full64", "interleave low 64-bit words of each 128 bits"],
  vpunpckhqdq: ["rvm", "66.0F.W1 6D", "full64", "interleave high 64-bit words of each 128 bits"],
  vpunpcklbw: ["rvm", "66.0F.W0 60", "full", "interleave low bytes of each 128 bits"],
  vpunpckhbw: ["rvm", "66.0F.W0 68", "full", "interleave high bytes of each 128 bits"],
  vpunpcklwd: ["rvm", "66.0F.W0 61", "full", "interleave low 16-bit words of each 128 bits"],
  vpunpckhwd: ["rvm", "66.0F.W0 69", "full", "interleave high 16-bit words of each 128 bits"],
  valignd: ["rvmi", "66.0F3A.W0 03", "full32", "(a:b) shifted right by imm lanes"],
  vextractf32x4: ["mri", "66.0F3A.W0 19", "16", "quarter imm"],
  vextractf32x8: ["mri", "66.0F3A.W0 1B", "32", "half imm"],
  vinsertf32x4: ["rvmi", "66.0F3A.W0 18", "16", "a with quarter imm replaced by b"],
  vinserti64x4: ["rvmi", "66.0F3A.W1 3A", "32", "a with half imm replaced by b"],

  // Products of bf16 pairs (AVX512_BF16)
  vdpbf16ps: [
    "rvm",
    "F3.0F38.W0 52",
    "full32",
    "dst += a.odd × b.odd + a.even × b.even, bf16 to f32",
  ],
} as const;

export type VectorOp = keyof typeof INSTRUCTIONS;

/** The operands that `Op` takes. */
export type Operands<Op extends VectorOp> = OperandsByForm[(typeof INSTRUCTIONS)[Op][0]];

export const VECTOR_OPS: readonly VectorOp[] = Object.keys(INSTRUCTIONS) as VectorOp[];
