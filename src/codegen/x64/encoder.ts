/**
 * @file Bytes of x86-64 instructions: prefixes (REX, VEX, EVEX), ModRM, SIB, displacements.
 *
 * Knows how fields are packed, not what instructions mean. Prefix fields hold register bits
 * inverted where the manual says so. A displacement is one byte when it fits; in EVEX that byte
 * counts units of the memory operand (disp8×N).
 *
 * Source: SDM volume 2, sections 2.1 (ModRM, SIB), 2.2.1 (REX), 2.3.5 (VEX), 2.7 (EVEX).
 */
import { assert, defined } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import { INSTRUCTIONS, type MemoryWidth, type Row, type VectorOp } from "./instructions.ts";
import type { Gp, Mask, MaskRegister, Memory, Tile, Vector } from "./operands.ts";

export type Register = Gp | Vector | MaskRegister | Tile;
export type RegisterOrMemory = Register | Memory;

/** An opcode in the VEX/EVEX space. */
export interface Opcode {
  /** 1 = 0F, 2 = 0F38, 3 = 0F3A. */
  readonly map: number;
  /** 0 = none, 1 = 66, 2 = F3, 3 = F2. */
  readonly prefix: number;
  readonly w: number;
  readonly byte: number;
}

/** A row of the instruction table, parsed. */
export interface ParsedInstruction extends Opcode {
  readonly storeByte: number;
  /** The opcode extension in ModRM.reg; -1 if that field holds a register. */
  readonly digit: number;
  readonly memoryWidth: MemoryWidth;
}

const MAPS = ["", "0F", "0F38", "0F3A"];
const PREFIXES = ["", "66", "F3", "F2"];

function parse(op: VectorOp): ParsedInstruction {
  const [, encoding, memoryWidth]: Row = INSTRUCTIONS[op];
  const match = /^(?:(66|F3|F2)\.)?(0F|0F38|0F3A)\.W([01]) (\w\w)(?:\|(\w\w))?(?: \/(\d))?$/.exec(
    encoding,
  );
  const [, prefix = "", map, w, byte, storeByte, digit] = defined(match, `encoding of ${op}`);
  return {
    map: MAPS.indexOf(defined(map, "map")),
    prefix: PREFIXES.indexOf(prefix),
    w: Number(w),
    byte: Number.parseInt(defined(byte, "opcode"), 16),
    storeByte: storeByte === undefined ? -1 : Number.parseInt(storeByte, 16),
    digit: digit === undefined ? -1 : Number(digit),
    memoryWidth,
  };
}

const parsed = new Map<VectorOp, ParsedInstruction>();

/** The table's row for `op`, parsed at first use. */
export function instruction(op: VectorOp): ParsedInstruction {
  let row = parsed.get(op);
  if (row === undefined) {
    row = parse(op);
    parsed.set(op, row);
  }
  return row;
}

const SHARES: Readonly<Record<string, number>> = { half: 2, quarter: 4 };

/** Bytes that a memory operand of this width moves; `vectorBytes` is the vector's own length. */
function memoryBytes(width: MemoryWidth, vectorBytes: number, broadcast: boolean): number {
  assert(width !== "none", "this instruction takes no memory operand");
  const element = width === "full32" ? 4 : width === "full64" ? 8 : 0;
  assert(!broadcast || element > 0, "this instruction cannot broadcast its memory operand");
  if (broadcast) return element;
  if (element > 0 || width === "full") return vectorBytes;
  const share = SHARES[width];
  return share === undefined ? Number(width) : divExact(vectorBytes, share);
}

const inverted = (bit: number): number => (bit ? 0 : 1);

/** A growing run of code. */
export class Encoder {
  readonly bytes: number[] = [];

  emit(...bytes: readonly number[]): void {
    for (const byte of bytes) this.bytes.push(byte & 255);
  }

  emit32(value: number): void {
    this.emit(value, value >> 8, value >> 16, value >> 24);
  }

  /** ModRM, SIB and displacement; one displacement byte counts units of `unit` bytes. */
  modrm(field: number, operand: RegisterOrMemory, unit = 1): void {
    const reg = (field & 7) << 3;
    if (operand.kind !== "memory") {
      this.emit(0xc0 | reg | (operand.index & 7));
      return;
    }
    const { displacement, index } = operand;
    const base = operand.base.index & 7;
    const needsSib = index !== null || base === 4;
    const units = displacement / unit;
    const fitsByte = Number.isInteger(units) && units >= -128 && units <= 127;
    // Base 5 (rbp, r13) without a displacement would mean an address relative to rip.
    const mode = displacement === 0 && base !== 5 ? 0 : fitsByte ? 1 : 2;
    this.emit((mode << 6) | reg | (needsSib ? 4 : base));
    if (needsSib) {
      const scale = index === null ? 0 : Math.log2(operand.scale);
      this.emit((scale << 6) | ((index === null ? 4 : index.index & 7) << 3) | base);
    }
    if (mode === 1) this.emit(units);
    else if (mode === 2) this.emit32(displacement);
  }

  /**
   * REX prefix where needed, opcode, ModRM.
   */
  legacy(opcode: readonly number[], field: number, operand: RegisterOrMemory, w: 0 | 1 = 1): void {
    const memory = operand.kind === "memory" ? operand : null;
    const x = (memory?.index?.index ?? 0) >> 3;
    const b = operand.kind === "memory" ? operand.base.index >> 3 : operand.index >> 3;
    const rex = (w << 3) | ((field >> 3) << 2) | (x << 1) | b;
    if (rex > 0) this.emit(0x40 | rex);
    this.emit(...opcode);
    this.modrm(field, operand);
  }

  /** A VEX-encoded instruction of length 128; `operand` null leaves ModRM to the caller. */
  vex(
    opcode: Opcode,
    field: number,
    source: number,
    operand: RegisterOrMemory | null,
    l = 0,
  ): void {
    const memory = operand?.kind === "memory" ? operand : null;
    const x = (memory?.index?.index ?? 0) >> 3;
    const b = operand === null ? 0 : (memory?.base ?? (operand as Register)).index >> 3;
    this.emit(
      0xc4,
      (inverted(field >> 3) << 7) | (inverted(x) << 6) | (inverted(b) << 5) | opcode.map,
      (opcode.w << 7) | ((~source & 15) << 3) | (l << 2) | opcode.prefix,
      opcode.byte,
    );
    if (operand !== null) this.modrm(field, operand);
  }

  /** An EVEX-encoded instruction on vectors of `bits` bits. */
  evex(options: {
    readonly row: ParsedInstruction;
    readonly byte: number;
    readonly field: number;
    readonly source: number;
    readonly operand: RegisterOrMemory;
    readonly bits: number;
    readonly mask: Mask | null;
    readonly immediate: number | null;
  }): void {
    const { row, byte, field, source, operand, bits, mask, immediate } = options;
    const memory = operand.kind === "memory" ? operand : null;
    const index = operand.kind === "memory" ? operand.base.index : operand.index;
    const x = memory === null ? (index >> 4) & 1 : ((memory.index?.index ?? 0) >> 3) & 1;
    this.emit(
      0x62,
      (inverted((field >> 3) & 1) << 7) |
        (inverted(x) << 6) |
        (inverted((index >> 3) & 1) << 5) |
        (inverted((field >> 4) & 1) << 4) |
        row.map,
      (row.w << 7) | ((~source & 15) << 3) | 4 | row.prefix,
      ((mask?.z ? 1 : 0) << 7) |
        ((bits >> 8) << 5) |
        ((memory?.broadcast ? 1 : 0) << 4) |
        (inverted((source >> 4) & 1) << 3) |
        (mask?.k.index ?? 0),
      byte,
    );
    const unit = memory === null ? 1 : memoryBytes(row.memoryWidth, bits / 8, memory.broadcast);
    this.modrm(field, operand, unit);
    if (immediate !== null) this.emit(immediate);
  }
}
