/**
 * @file An assembler for x86-64: general registers, AVX-512, masks, AMX tiles, labels, and one
 * structured loop.
 *
 * Operand order is Intel's: destination first. Every method is one instruction under the manual's
 * name, except `label`, `bind`, `align` and `countdown`. It knows encodings, not tensors, and
 * checks what the types cannot: ranges of immediates, unbound labels, masks that an instruction
 * cannot take.
 *
 *     const a = new X64();
 *     a.countdown(r.rcx, 16, () => {
 *       a.v("vmovups", [zmm(0), mem(r.rsi)]);
 *       a.v("vmovups", [mem(r.rdi), zmm(0)]);
 *       …
 *     });
 *     a.ret();
 *     a.code();
 *
 * Source: SDM volume 2.
 */
import { assert } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import { Encoder, instruction, type Opcode, type RegisterOrMemory } from "./encoder.ts";
import { type Form, INSTRUCTIONS, type Operands, type VectorOp } from "./instructions.ts";
import type { Gp, Mask, MaskRegister, Memory, Tile } from "./operands.ts";

/** Two-operand integer instructions: opcode of `op r/m, r`, digit of `op r/m, imm`. */
const INTEGER_OPS = {
  add: [0x01, 0],
  or: [0x09, 1],
  and: [0x21, 4],
  sub: [0x29, 5],
  xor: [0x31, 6],
  cmp: [0x39, 7],
} as const;

/** Condition codes (SDM volume 1, appendix B): `l`, `g` signed, `b`, `a` unsigned. */
const CONDITIONS = {
  o: 0,
  no: 1,
  b: 2,
  ae: 3,
  e: 4,
  z: 4,
  ne: 5,
  nz: 5,
  be: 6,
  a: 7,
  s: 8,
  ns: 9,
  p: 10,
  np: 11,
  l: 12,
  ge: 13,
  le: 14,
  g: 15,
} as const;

export type Condition = keyof typeof CONDITIONS;

/** The recommended no-operations of 1 to 8 bytes (SDM volume 2, NOP). */
const NOPS: readonly (readonly number[])[] = [
  [0x90],
  [0x66, 0x90],
  [0x0f, 0x1f, 0x00],
  [0x0f, 0x1f, 0x40, 0x00],
  [0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
  [0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/** A place in the code, to jump to; bound once. */
export interface Label {
  position: number;
  readonly uses: number[];
}

const opcode = (map: number, prefix: number, w: number, byte: number): Opcode => ({
  map,
  prefix,
  w,
  byte,
});

export class X64 {
  readonly #encoder = new Encoder();
  readonly #labels: Label[] = [];

  /** Bytes emitted so far. */
  get byteLength(): number {
    return this.#encoder.bytes.length;
  }

  /** The finished code; every label that is used must be bound. */
  code(): Uint8Array {
    const unbound = this.#labels.filter((label) => label.position < 0 && label.uses.length > 0);
    assert(unbound.length === 0, `${unbound.length} labels are used and never bound`);
    return Uint8Array.from(this.#encoder.bytes);
  }

  // --- Vectors ---

  /** One vector instruction: `v("vfmadd231ps", [zmm(0), zmm(1), bcst(mem(r.rsi))])`. */
  v<Op extends VectorOp>(op: Op, operands: Operands<Op>, mask: Mask | null = null): void {
    const row = instruction(op);
    const form: Form = INSTRUCTIONS[op][0];
    const args = operands as readonly (RegisterOrMemory | number)[];
    let bits = 128;
    for (const arg of args) {
      if (typeof arg === "object" && arg.kind === "vector") bits = Math.max(bits, arg.bits);
    }
    const last = args[args.length - 1];
    const immediate = typeof last === "number" ? last : null;
    if (immediate !== null && !isIntegerIn(immediate, -128, 255)) {
      assert(false, `${op}: immediate (${immediate}) must fit a byte`);
    }
    const [first, second, third] = args as [RegisterOrMemory, RegisterOrMemory, RegisterOrMemory];
    checkMask(op, mask, first);
    const isStore = form === "move" ? first.kind === "memory" : STORE_FORMS.has(form);
    const emit = (field: number, source: number, operand: RegisterOrMemory): void =>
      this.#encoder.evex({
        row,
        byte: form === "move" && isStore ? row.storeByte : row.byte,
        ...{ field, source, operand, bits, mask, immediate },
      });
    if (row.digit >= 0) emit(row.digit, indexOf(first), second);
    else if (isStore) emit(indexOf(second), 0, first);
    else if (THREE_OPERAND_FORMS.has(form)) emit(indexOf(first), indexOf(second), third);
    else emit(indexOf(first), 0, second);
  }

  vzeroupper(): void {
    this.#encoder.emit(0xc5, 0xf8, 0x77);
  }

  // --- Mask registers ---

  /** 16 mask bits from a general register. */
  kmovw(destination: MaskRegister, source: Gp): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x92), destination.index, 0, source);
  }

  /** 32 mask bits from a general register. */
  kmovd(destination: MaskRegister, source: Gp): void {
    this.#encoder.vex(opcode(1, 3, 0, 0x92), destination.index, 0, source);
  }

  /** 64 mask bits from a general register. */
  kmovq(destination: MaskRegister, source: Gp): void {
    this.#encoder.vex(opcode(1, 3, 1, 0x92), destination.index, 0, source);
  }

  /** 32 mask bits to a general register. */
  kmovdToGp(destination: Gp, source: MaskRegister): void {
    this.#encoder.vex(opcode(1, 3, 0, 0x93), destination.index, 0, source);
  }

  kandw(destination: MaskRegister, a: MaskRegister, b: MaskRegister): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x41), destination.index, a.index, b, 1);
  }

  korw(destination: MaskRegister, a: MaskRegister, b: MaskRegister): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x45), destination.index, a.index, b, 1);
  }

  knotw(destination: MaskRegister, source: MaskRegister): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x44), destination.index, 0, source);
  }

  /** Every bit set if the operands are one register. */
  kxnorw(destination: MaskRegister, a: MaskRegister, b: MaskRegister): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x46), destination.index, a.index, b, 1);
  }

  /** Zero flag if `a or b` is empty, carry flag if it is full. */
  kortestw(a: MaskRegister, b: MaskRegister): void {
    this.#encoder.vex(opcode(1, 0, 0, 0x98), a.index, 0, b);
  }

  // --- AMX ---

  /** Tile shapes from 64 bytes of memory. */
  ldtilecfg(configuration: Memory): void {
    this.#encoder.vex(opcode(2, 0, 0, 0x49), 0, 0, configuration);
  }

  tilerelease(): void {
    this.#encoder.vex(opcode(2, 0, 0, 0x49), 0, 0, null);
    this.#encoder.emit(0xc0);
  }

  tilezero(tile: Tile): void {
    this.#encoder.vex(opcode(2, 3, 0, 0x49), tile.index, 0, { kind: "tile", index: 0 });
  }

  /** Rows from base + row × index register. */
  tileloadd(tile: Tile, source: Memory): void {
    assert(source.index !== null && source.scale === 1, "tileloadd needs a stride register");
    this.#encoder.vex(opcode(2, 3, 0, 0x4b), tile.index, 0, source);
  }

  /** The same of rows that come once: they push less out of the first-level cache. */
  tileloaddt1(tile: Tile, source: Memory): void {
    assert(source.index !== null && source.scale === 1, "tileloaddt1 needs a stride register");
    this.#encoder.vex(opcode(2, 1, 0, 0x4b), tile.index, 0, source);
  }

  tilestored(destination: Memory, tile: Tile): void {
    assert(destination.index !== null && destination.scale === 1, "tilestored needs a stride");
    this.#encoder.vex(opcode(2, 2, 0, 0x4b), tile.index, 0, destination);
  }

  /** sum += a × b, pairs of bf16 into f32. */
  tdpbf16ps(sum: Tile, a: Tile, b: Tile): void {
    this.#encoder.vex(opcode(2, 2, 0, 0x5c), sum.index, b.index, a);
  }

  // --- General registers ---

  /** 64 bits; immediates are sign-extended. */
  mov(destination: Gp | Memory, source: Gp | Memory | number): void {
    const encoder = this.#encoder;
    if (typeof source === "number") {
      if (source === (source | 0)) {
        encoder.legacy([0xc7], 0, destination);
        encoder.emit32(source);
        return;
      }
      assert(destination.kind === "gp", "a 64-bit immediate needs a register");
      assert(Number.isSafeInteger(source), `immediate (${source}) must be a safe integer`);
      encoder.emit(0x48 | (destination.index >> 3), 0xb8 | (destination.index & 7));
      encoder.emit32(source | 0);
      encoder.emit32(Math.floor(source / 2 ** 32) | 0);
    } else if (source.kind === "memory") {
      assert(destination.kind === "gp", "mov cannot move memory to memory");
      encoder.legacy([0x8b], destination.index, source);
    } else encoder.legacy([0x89], source.index, destination);
  }

  /** 32 bits, zero-extended when loaded. */
  mov32(destination: Gp | Memory, source: Gp | Memory): void {
    if (source.kind === "memory") {
      assert(destination.kind === "gp", "mov cannot move memory to memory");
      this.#encoder.legacy([0x8b], destination.index, source, 0);
    } else this.#encoder.legacy([0x89], source.index, destination, 0);
  }

  /** A register from 32 signed bits. */
  movsxd(destination: Gp, source: Gp | Memory): void {
    this.#encoder.legacy([0x63], destination.index, source);
  }

  /** A register from 8 unsigned bits of memory. */
  movzx8(destination: Gp, source: Memory): void {
    this.#encoder.legacy([0x0f, 0xb6], destination.index, source);
  }

  /** A register from 16 unsigned bits of memory. */
  movzx16(destination: Gp, source: Memory): void {
    this.#encoder.legacy([0x0f, 0xb7], destination.index, source);
  }

  lea(destination: Gp, address: Memory): void {
    this.#encoder.legacy([0x8d], destination.index, address);
  }

  add(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("add", destination, source);
  }

  or(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("or", destination, source);
  }

  and(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("and", destination, source);
  }

  sub(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("sub", destination, source);
  }

  xor(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("xor", destination, source);
  }

  cmp(destination: Gp | Memory, source: Gp | Memory | number): void {
    this.#integer("cmp", destination, source);
  }

  #integer(
    name: keyof typeof INTEGER_OPS,
    destination: Gp | Memory,
    source: Gp | Memory | number,
  ): void {
    const [byte, digit] = INTEGER_OPS[name];
    const encoder = this.#encoder;
    if (typeof source === "number") {
      assert(source === (source | 0), `${name}: immediate (${source}) must fit 32 bits`);
      const isShort = source >= -128 && source <= 127;
      encoder.legacy([isShort ? 0x83 : 0x81], digit, destination);
      if (isShort) encoder.emit(source);
      else encoder.emit32(source);
    } else if (source.kind === "memory") {
      assert(destination.kind === "gp", `${name} cannot take two memory operands`);
      encoder.legacy([byte | 2], destination.index, source);
    } else encoder.legacy([byte], source.index, destination);
  }

  /** Flags of `a and b`. */
  test(a: Gp, b: Gp): void {
    this.#encoder.legacy([0x85], b.index, a);
  }

  /** destination × source, or source × immediate. */
  imul(destination: Gp, source: Gp | Memory, immediate?: number): void {
    if (immediate === undefined) {
      this.#encoder.legacy([0x0f, 0xaf], destination.index, source);
      return;
    }
    assert(immediate === (immediate | 0), `imul: immediate (${immediate}) must fit 32 bits`);
    this.#encoder.legacy([0x69], destination.index, source);
    this.#encoder.emit32(immediate);
  }

  neg(register: Gp): void {
    this.#encoder.legacy([0xf7], 3, register);
  }

  shl(register: Gp, count: number): void {
    this.#shift(4, register, count);
  }

  shr(register: Gp, count: number): void {
    this.#shift(5, register, count);
  }

  sar(register: Gp, count: number): void {
    this.#shift(7, register, count);
  }

  #shift(digit: number, register: Gp, count: number): void {
    assert(isIntegerIn(count, 0, 63), `shift count (${count}) must be in 0..63`);
    this.#encoder.legacy([0xc1], digit, register);
    this.#encoder.emit(count);
  }

  cmov(condition: Condition, destination: Gp, source: Gp | Memory): void {
    this.#encoder.legacy([0x0f, 0x40 | CONDITIONS[condition]], destination.index, source);
  }

  /** The low `count` bits of source, the rest zero (BMI2). */
  bzhi(destination: Gp, source: Gp, count: Gp): void {
    this.#encoder.vex(opcode(2, 0, 1, 0xf5), destination.index, count.index, source);
  }

  push(register: Gp): void {
    if (register.index > 7) this.#encoder.emit(0x41);
    this.#encoder.emit(0x50 | (register.index & 7));
  }

  pop(register: Gp): void {
    if (register.index > 7) this.#encoder.emit(0x41);
    this.#encoder.emit(0x58 | (register.index & 7));
  }

  /** Into all levels of cache, or level 2 and out. */
  prefetch(address: Memory, level: 0 | 1 = 0): void {
    this.#encoder.legacy([0x0f, 0x18], level + 1, address, 0);
  }

  /** What leaf rax, subleaf rcx of the processor's identification says, in rax, rbx, rcx, rdx. */
  cpuid(): void {
    this.#encoder.emit(0x0f, 0xa2);
  }

  /** The register states that the operating system saves, in edx:eax (rcx = 0). */
  xgetbv(): void {
    this.#encoder.emit(0x0f, 0x01, 0xd0);
  }

  /** An instruction that no processor has. */
  ud2(): void {
    this.#encoder.emit(0x0f, 0x0b);
  }

  ret(): void {
    this.#encoder.emit(0xc3);
  }

  // --- Labels and loops ---

  label(): Label {
    const label: Label = { position: -1, uses: [] };
    this.#labels.push(label);
    return label;
  }

  /** Let `label` be here. */
  bind(label: Label): void {
    assert(this.#labels.includes(label), "the label belongs to another assembler");
    assert(label.position < 0, "the label is bound twice");
    label.position = this.byteLength;
    for (const use of label.uses) this.#patch(use, label.position);
  }

  j(condition: Condition, label: Label): void {
    this.#jump([0x70 | CONDITIONS[condition]], [0x0f, 0x80 | CONDITIONS[condition]], label);
  }

  jmp(label: Label): void {
    this.#jump([0xeb], [0xe9], label);
  }

  call(label: Label): void {
    this.#jump(null, [0xe8], label);
  }

  #jump(short: readonly number[] | null, near: readonly number[], label: Label): void {
    assert(this.#labels.includes(label), "the label belongs to another assembler");
    const distance = label.position - (this.byteLength + 2);
    if (short !== null && label.position >= 0 && distance >= -128) {
      this.#encoder.emit(...short, distance);
      return;
    }
    this.#encoder.emit(...near);
    const at = this.byteLength;
    this.#encoder.emit32(0);
    if (label.position >= 0) this.#patch(at, label.position);
    else label.uses.push(at);
  }

  #patch(at: number, target: number): void {
    const distance = target - at - 4;
    for (let i = 0; i < 4; i++) this.#encoder.bytes[at + i] = (distance >> (8 * i)) & 255;
  }

  /** Fill with no-operations up to a multiple of `multiple` bytes. */
  align(multiple: number): void {
    while (this.byteLength % multiple !== 0) {
      const missing = multiple - (this.byteLength % multiple);
      this.#encoder.emit(...NOPS[Math.min(missing, NOPS.length) - 1]!);
    }
  }

  /** `while (counter > 0) { body; counter -= step }`, signed. */
  countdown(counter: Gp, step: number, body: () => void): void {
    const top = this.label();
    const end = this.label();
    this.cmp(counter, 0);
    this.j("le", end);
    this.align(32);
    this.bind(top);
    body();
    this.sub(counter, step);
    this.j("g", top);
    this.bind(end);
  }
}

const STORE_FORMS: ReadonlySet<Form> = new Set<Form>(["mr", "mri", "store", "mg"]);
const THREE_OPERAND_FORMS: ReadonlySet<Form> = new Set<Form>([
  ...(["rvm", "rvmi", "kvm", "kvmi", "rvg"] as const),
]);

function indexOf(operand: RegisterOrMemory): number {
  assert(operand.kind !== "memory", "a register is needed here");
  return operand.index;
}

function checkMask(op: VectorOp, mask: Mask | null, destination: RegisterOrMemory): void {
  if (mask === null) return;
  assert(mask.k.index > 0, `${op}: k0 means "no mask" and cannot mask`);
  assert(!mask.z || destination.kind === "vector", `${op}: only a vector can be zeroed by a mask`);
}
