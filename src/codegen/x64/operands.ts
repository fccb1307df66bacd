/**
 * @file What x86-64 instructions work on: registers and memory operands, each its own type.
 *
 * Registers are named as the manual names them: `r.rax`, `zmm(3)`, `k(1)`, `tmm(0)`. A memory
 * operand is base + index × scale + displacement; `bcst` makes it one element, repeated in every
 * lane. Giving a register of the wrong kind to an instruction is an error of the type checker.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), volume 2, chapters 2
 * and 3.
 */
import { assert } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";

/** A general register, 64 bits wide (32 where the instruction says so). */
export interface Gp {
  readonly kind: "gp";
  readonly index: number;
}

/** A vector register: its low 128 bits (xmm), 256 (ymm) or all 512 (zmm). */
export interface Vector {
  readonly kind: "vector";
  readonly index: number;
  readonly bits: 128 | 256 | 512;
}

/** One bit a lane. */
export interface MaskRegister {
  readonly kind: "mask";
  readonly index: number;
}

/** An AMX tile: up to 16 rows of 64 bytes. */
export interface Tile {
  readonly kind: "tile";
  readonly index: number;
}

/** base + index × scale + displacement. */
export interface Memory {
  readonly kind: "memory";
  readonly base: Gp;
  readonly index: Gp | null;
  readonly scale: 1 | 2 | 4 | 8;
  readonly displacement: number;
  /** One element, repeated in every lane (EVEX.b). */
  readonly broadcast: boolean;
}

/** Lanes whose bit in `k` is 0 keep their old value, or become zero if `z`. */
export interface Mask {
  readonly k: MaskRegister;
  readonly z: boolean;
}

const GP_NAMES = [
  "rax",
  "rcx",
  "rdx",
  "rbx",
  "rsp",
  "rbp",
  "rsi",
  "rdi",
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
] as const;

export type GpName = (typeof GP_NAMES)[number];

/** The general registers by name. */
export const r: Readonly<Record<GpName, Gp>> = Object.fromEntries(
  GP_NAMES.map((name, index) => [name, { kind: "gp", index }]),
) as Record<GpName, Gp>;

/** A general register's name. */
export function gpName(register: Gp): GpName {
  return GP_NAMES[register.index]!;
}

function vector(index: number, bits: Vector["bits"]): Vector {
  assert(isIntegerIn(index, 0, 31), `vector register (${index}) must be in 0..31`);
  return { kind: "vector", index, bits };
}

export function zmm(index: number): Vector {
  return vector(index, 512);
}

export function ymm(index: number): Vector {
  return vector(index, 256);
}

export function xmm(index: number): Vector {
  return vector(index, 128);
}

export function k(index: number): MaskRegister {
  assert(isIntegerIn(index, 0, 7), `mask register (${index}) must be in 0..7`);
  return { kind: "mask", index };
}

export function tmm(index: number): Tile {
  assert(isIntegerIn(index, 0, 7), `tile register (${index}) must be in 0..7`);
  return { kind: "tile", index };
}

export function mem(
  base: Gp,
  displacement = 0,
  index: Gp | null = null,
  scale: Memory["scale"] = 1,
): Memory {
  assert(displacement === (displacement | 0), `displacement (${displacement}) must fit 32 bits`);
  assert(index?.index !== r.rsp.index, "rsp cannot be an index register");
  return { kind: "memory", base, index, scale, displacement, broadcast: false };
}

/** One element of memory, repeated in every lane. */
export function bcst(operand: Memory): Memory {
  return { ...operand, broadcast: true };
}

/** Write only the lanes in `register`, keep the others. */
export function merging(register: MaskRegister): Mask {
  return { k: register, z: false };
}

/** Write the lanes in `register`, zero the others; masked-out memory is not read. */
export function zeroing(register: MaskRegister): Mask {
  return { k: register, z: true };
}
