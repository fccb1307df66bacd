/**
 * @file Codes to bf16 in registers, exactly, through tables: what products and packing of coded
 * weights read.
 *
 * Eight bits are a sign and one of 128 magnitudes: `vpermi2b` looks up the low and the high byte of
 * each magnitude's bf16, and interleaving the bytes makes words of two neighbouring values. Four
 * bits are looked up by `vpermw`, whose index ignores the bits above the fifth: the table of 16 is
 * there twice, so that the nibble above never matters. No instruction depends on the values, so
 * int8 and FP8 differ by their table alone.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { type Gp, mem, type Vector, zmm } from "../../codegen/x64/operands.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import type { CodedFormat } from "../../tensor/coded-weight.ts";
import { CODE_VALUES } from "./codes.ts";

/** Words (pairs of values) of depth in a step. */
export const STEP_WORDS = 16;
/** The constants: tables, the signs of four bytes, a pair of ones. */
const AT = { tables: 0, signs: 256, ones: 260 } as const;
export const CONSTANTS_BYTES = 320;
/** Where `emitDot` finds the pair of ones, from the constants on. */
export const ONES_AT: number = AT.ones;

/** Registers that hold the tables, and those that a step clobbers. */
const TABLES = [zmm(4), zmm(5), zmm(6), zmm(7)] as const;
const SIGNS = zmm(8);
const [FIRST, SECOND, THIRD, FOURTH] = [zmm(0), zmm(1), zmm(2), zmm(3)] as const;
/** The first register that expansion leaves alone. */
export const FREE_VECTOR = 9;

/** The constants of a format, for `emitLoadTables`. */
export function expansionConstants(format: CodedFormat): Uint8Array {
  const bytes = new Uint8Array(CONSTANTS_BYTES);
  const values = CODE_VALUES[format];
  if (format === "int4") {
    const words = new Uint16Array(bytes.buffer, 0, 32);
    for (let index = 0; index < 32; index++) words[index] = toBf16(values[index & 15]!);
  } else {
    for (let magnitude = 0; magnitude < 128; magnitude++) {
      const word = toBf16(values[magnitude]!);
      bytes[magnitude] = word & 0xff;
      bytes[128 + magnitude] = word >> 8;
    }
  }
  bytes.fill(0x80, AT.signs, AT.signs + 4);
  new Uint16Array(bytes.buffer, AT.ones, 2).fill(toBf16(1));
  return bytes;
}

/** Tables into their registers; `constants` holds their address. */
export function emitLoadTables(a: X64, format: CodedFormat, constants: Gp): void {
  const count = format === "int4" ? 1 : TABLES.length;
  for (const [index, table] of TABLES.slice(0, count).entries()) {
    a.v("vmovups", [table, mem(constants, AT.tables + 64 * index)]);
  }
  if (format !== "int4") a.v("vpbroadcastd", [SIGNS, mem(constants, AT.signs)]);
}

/** 64 bytes of codes hold this many words of 16 rows. */
export function wordsPerVector(format: CodedFormat): 2 | 4 {
  return format === "int4" ? 4 : 2;
}

/**
 * The words of one vector of codes at `at`, each handed to `emitWord` as soon as it is there; it
 * must not clobber zmm0..3.
 */
export function emitExpand(
  a: X64,
  format: CodedFormat,
  at: ReturnType<typeof mem>,
  emitWord: (word: number, register: Vector) => void,
): void {
  if (format === "int4") {
    a.v("vmovups", [FIRST, at]);
    for (let word = 0; word < 4; word++) {
      const to = word % 2 === 0 ? SECOND : THIRD;
      if (word > 0) a.v("vpsrlw", [to, FIRST, 4 * word]);
      a.v("vpermw", [to, word === 0 ? FIRST : to, TABLES[0]]);
      emitWord(word, to);
    }
    return;
  }
  a.v("vmovups", [FIRST, at]);
  a.v("vpermi2b", [FIRST, TABLES[0], TABLES[1]]);
  a.v("vmovups", [SECOND, at]);
  a.v("vpermi2b", [SECOND, TABLES[2], TABLES[3]]);
  // high byte | (sign & code)
  a.v("vpternlogd", [SECOND, SIGNS, at, 0xf8]);
  a.v("vpunpcklbw", [THIRD, FIRST, SECOND]);
  a.v("vpunpckhbw", [FOURTH, FIRST, SECOND]);
  emitWord(0, THIRD);
  emitWord(1, FOURTH);
}
