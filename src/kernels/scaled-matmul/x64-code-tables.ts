/**
 * @file FP8 codes to bf16 in registers, exactly, by tables: sixty-four codes in five instructions.
 *
 *     bytes = codes  →  low bytes, high bytes  →  two vectors of bf16
 *
 * The seven bits of a magnitude look up each half of its bf16 among 128 bytes (`vpermi2b` takes no
 * notice of the eighth), the sign joins the high half. Subnormal codes, NaN and infinities need
 * nothing of their own. Processors without AVX512_VBMI have matmul/x64-widen.ts.
 *
 * Unpacking the halves takes the low eight bytes of each 128 bits into the first vector and the
 * high eight into the second: packing brings codes into an order that this undoes.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { type Gp, mem, type Vector, zmm } from "../../codegen/x64/operands.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";
import type { ProductFormat } from "./contract.ts";

const VECTOR_BYTES = 64;
const NUM_MAGNITUDES = 128;
const VALUES: Readonly<Record<ProductFormat, Float32Array>> = {
  e4m3: E4M3.values,
  e5m2: E5M2.values,
};

/** Registers of the tables: low halves of magnitudes, high halves, and the sign's bit. */
const LOW = [zmm(24), zmm(25)] as const;
const HIGH = [zmm(26), zmm(27)] as const;
const SIGN = zmm(28);
/** Where a packing routine has the order that its codes are brought into. */
export const CODE_ORDER: Vector = zmm(29);

/** Orders of 64 codes, by what is done with them. */
export type CodeOrder = keyof typeof ORDERS;
const ORDERS = {
  /** One row: its first 32 codes in the low eight bytes of each 128 bits, others in the high. */
  row: (byte: number): number => 8 * (byte >> 4) + 32 * ((byte >> 3) & 1) + (byte & 7),
  /** Thirty-two lanes of two rows: four lanes of either half of either row in each 128 bits. */
  lanes: (byte: number): number => 16 * ((byte >> 2) & 3) + 4 * (byte >> 4) + (byte & 3),
} as const;

/** Bytes of `codeTables`. */
export const CODE_TABLE_BYTES: number = 2 * NUM_MAGNITUDES + 2 * VECTOR_BYTES;

/** Everything that packing keeps in registers, for codes of a format. */
export function codeTables(format: ProductFormat, order: CodeOrder): Int32Array {
  const halves = Array.from({ length: NUM_MAGNITUDES }, (_, code) => toBf16(VALUES[format][code]!));
  const sign = new Array<number>(VECTOR_BYTES).fill(0x80);
  const places = Array.from({ length: VECTOR_BYTES }, (_, byte) => ORDERS[order](byte));
  const [low, high] = [halves.map((word) => word & 255), halves.map((word) => word >> 8)];
  return new Int32Array(Uint8Array.from([...low, ...high, ...sign, ...places]).buffer);
}

/** The tables at `address` into their registers. */
export function emitLoadCodeTables(a: X64, address: Gp): void {
  for (const [index, table] of [...LOW, ...HIGH, SIGN, CODE_ORDER].entries()) {
    a.v("vmovups", [table, mem(address, index * VECTOR_BYTES)]);
  }
}

/**
 * The codes in `x` as bf16: those of the low eight bytes of each 128 bits in `x`, the others in
 * `high`; clobbers `low`.
 */
export function emitWidenCodes(a: X64, x: Vector, low: Vector, high: Vector): void {
  a.v("vmovups", [low, x]);
  a.v("vpermi2b", [low, ...LOW]);
  a.v("vmovups", [high, x]);
  a.v("vpermi2b", [high, ...HIGH]);
  // high half = table | (code & sign)
  a.v("vpternlogd", [high, x, SIGN, 0xf8]);
  a.v("vpunpcklbw", [x, low, high]);
  a.v("vpunpckhbw", [high, low, high]);
}
