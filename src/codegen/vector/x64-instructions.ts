/**
 * @file Emits the instructions of a row program, one by one, as AVX-512: everything but tasks, rows
 * and loops.
 *
 * Inputs that die at an instruction give their register to its result. A uniform without a register
 * is read from the frame, as a broadcast operand where the instruction's last operand may be
 * memory, else through a borrowed register.
 */
import { assert } from "../../base/errors.ts";
import type { X64 } from "../x64/assembler.ts";
import type { VectorOp } from "../x64/instructions.ts";
import {
  bcst,
  type Gp,
  k,
  type Mask,
  type MaskRegister,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  xmm,
  zeroing,
} from "../x64/operands.ts";
import {
  type BinaryOp,
  type Comparison,
  type Instruction,
  inputsOf,
  type OperandIndex,
  type RowProgram,
  type ShiftOp,
  type Value,
} from "./program.ts";
import { COLUMN, WIDTH, type X64Frame } from "./x64-frame.ts";
import type { VectorRegisters } from "./x64-registers.ts";
import { emitRoundedStore } from "./x64-rounded-stores.ts";

export const LANES = 16;
/** The mask of the ragged end. */
export const TAIL: MaskRegister = k(1);
const CONDITION = k(2);
const SWAP_PAIRS = 0xb1;

/**
 * Where in a column loop a copy of the body stands: vector `copy` of a round, or the masked end.
 */
export interface Place {
  readonly tail: boolean;
  readonly copy: number;
}

type ThreeOperandOp = Extract<
  VectorOp,
  | ("vaddps" | "vsubps" | "vmulps" | "vdivps" | "vminps" | "vmaxps")
  | ("vpandd" | "vpord" | "vpxord" | "vpaddd" | "vpsubd" | "vpmulld")
>;
const BINARY: Record<BinaryOp, ThreeOperandOp> = {
  add: "vaddps",
  sub: "vsubps",
  mul: "vmulps",
  div: "vdivps",
  min: "vminps",
  max: "vmaxps",
  and: "vpandd",
  or: "vpord",
  xor: "vpxord",
  integerAdd: "vpaddd",
  integerSub: "vpsubd",
  integerMul: "vpmulld",
};
const COMMUTATIVE: ReadonlySet<BinaryOp> = new Set<BinaryOp>([
  ...(["add", "mul", "and", "or", "xor", "integerAdd", "integerMul"] as const),
]);
const SHIFT: Record<ShiftOp, "vpslld" | "vpsrld" | "vpsrad"> = {
  shiftLeft: "vpslld",
  shiftRight: "vpsrld",
  shiftRightSigned: "vpsrad",
};
const COMPARISON: Record<Comparison, readonly ["vcmpps" | "vpcmpd", number]> = {
  less: ["vcmpps", 1],
  lessEqual: ["vcmpps", 2],
  equal: ["vcmpps", 0],
  integerLess: ["vpcmpd", 1],
  integerEqual: ["vpcmpd", 0],
};

export class X64Instructions {
  readonly #program: RowProgram;
  readonly #a: X64;
  readonly #frame: X64Frame;
  readonly #registers: VectorRegisters;
  readonly #behind: (() => void)[] = [];
  #borrowed: Vector[] = [];

  constructor(program: RowProgram, a: X64, frame: X64Frame, registers: VectorRegisters) {
    this.#program = program;
    this.#a = a;
    this.#frame = frame;
    this.#registers = registers;
  }

  /** Emits one instruction other than a column loop, at `position` of the liveness order. */
  emit(value: Value, position: number, place: Place): void {
    const instruction = this.#program.instructions[value]!;
    switch (instruction.op) {
      case "store":
        this.#store(instruction.operand, this.register(instruction.a), place);
        break;
      case "storeRounded":
        this.#storeRounded(instruction.operand, this.register(instruction.a), place);
        break;
      case "storePerRow": {
        const { operand, element, a } = instruction;
        const source = xmm(this.register(a).index);
        this.#a.mov(r.rax, this.#frame.element(operand));
        this.#a.v("vmovss m32", [mem(r.rax, 4 * element), source]);
        break;
      }
      case "storeElement": {
        const source = xmm(this.register(instruction.a).index);
        this.#atElement(instruction.operand, instruction.index, (target) => {
          this.#a.v("vmovss m32", [target, source]);
        });
        break;
      }
      case "fma":
        this.#fma(value, instruction, position);
        break;
      default:
        this.#compute(value, instruction, position, place);
    }
    this.giveBack();
  }

  /**
   * The register of a value; borrowed from the pool until `giveBack` for a uniform that has none.
   */
  register(value: Value): Vector {
    const found = this.#registers.find(value);
    if (found !== null) return found;
    const source = this.#frame.uniform(value);
    assert(source !== null, `${this.#program.name}: value ${value} is used before it is made`);
    const borrowed = this.#registers.take();
    this.#borrowed.push(borrowed);
    this.#a.v("vbroadcastss", [borrowed, source]);
    return borrowed;
  }

  /** Returns the borrowed registers. */
  giveBack(): void {
    for (const register of this.#borrowed) this.#registers.release(register);
    this.#borrowed = [];
  }

  /** The register of a value, or the uniform's place in the frame. */
  #operand(value: Value): Vector | Memory {
    const found = this.#registers.find(value);
    if (found !== null) return found;
    const source = this.#frame.uniform(value);
    return source === null ? this.register(value) : bcst(source);
  }

  /** A register for the result: an input's that dies here, or a new one. */
  #destination(value: Value, instruction: Instruction, position: number): Vector {
    const dying = inputsOf(instruction).find((input) => this.#registers.diesAt(input, position));
    const register = dying === undefined ? this.#registers.take() : this.#registers.takeOver(dying);
    this.#registers.bind(value, register);
    return register;
  }

  #compute(value: Value, instruction: Instruction, position: number, place: Place): void {
    const a = this.#a;
    switch (instruction.op) {
      case "load":
        this.#load(this.#destination(value, instruction, position), instruction.operand, place);
        return;
      case "loadPerRow": {
        a.mov(r.rax, this.#frame.element(instruction.operand));
        const source = mem(r.rax, 4 * instruction.element);
        a.v("vpbroadcastd", [this.#destination(value, instruction, position), source]);
        return;
      }
      case "loadElement": {
        const result = this.#destination(value, instruction, position);
        a.v("vpxord", [result, result, result]);
        this.#atElement(instruction.operand, instruction.index, (source) => {
          a.v("vpbroadcastd", [result, source]);
        });
        return;
      }
      case "locate":
        this.#locate(instruction.operand, instruction.index, instruction.element);
        a.v("vpbroadcastd r32", [this.#destination(value, instruction, position), r.rcx]);
        return;
      case "columnIndex": {
        const result = this.#destination(value, instruction, position);
        a.lea(r.rax, mem(COLUMN, place.copy * LANES));
        a.v("vpbroadcastd r32", [result, r.rax]);
        a.v("vpaddd", [result, result, this.#frame.iota()]);
        return;
      }
      case "rowIndex":
        a.mov(r.rax, this.#frame.fixed("row"));
        a.v("vpbroadcastd r32", [this.#destination(value, instruction, position), r.rax]);
        return;
      case "select": {
        const [op, immediate] = COMPARISON[instruction.comparison];
        a.v(op, [CONDITION, this.register(instruction.a), this.#operand(instruction.b), immediate]);
        const x = this.#operand(instruction.x);
        const y = this.register(instruction.y);
        const result = this.#destination(value, instruction, position);
        a.v("vpblendmd", [result, y, x], merging(CONDITION));
        return;
      }
      case "shiftLeft":
      case "shiftRight":
      case "shiftRightSigned": {
        const source = this.register(instruction.a);
        const result = this.#destination(value, instruction, position);
        a.v(SHIFT[instruction.op], [result, source, instruction.distance]);
        return;
      }
      case "sqrt":
      case "roundToInteger":
      case "toFloat": {
        const op = { sqrt: "vsqrtps", roundToInteger: "vcvtps2dq", toFloat: "vcvtdq2ps" } as const;
        const source = this.#operand(instruction.a);
        a.v(op[instruction.op], [this.#destination(value, instruction, position), source]);
        return;
      }
      case "swapPairs": {
        const source = this.register(instruction.a);
        a.v("vpshufd", [this.#destination(value, instruction, position), source, SWAP_PAIRS]);
        return;
      }
      default:
        this.#binary(value, instruction, position);
    }
  }

  #binary(value: Value, instruction: Instruction, position: number): void {
    assert(instruction.op in BINARY, `${this.#program.name}: ${instruction.op} stands in no body`);
    const op = instruction.op as BinaryOp;
    const inputs = inputsOf(instruction);
    // A uniform without a register is cheapest as the last operand.
    if (COMMUTATIVE.has(op) && this.#registers.find(inputs[0]!) === null) inputs.reverse();
    const first = this.register(inputs[0]!);
    const second = this.#operand(inputs[1]!);
    this.#a.v(BINARY[op], [this.#destination(value, instruction, position), first, second]);
  }

  #fma(value: Value, instruction: Instruction & { op: "fma" }, position: number): void {
    const { a, b, c } = instruction;
    const registers = this.#registers;
    if (registers.diesAt(c, position)) {
      const [first, second] = registers.find(a) === null ? [b, a] : [a, b];
      const multiplicand = this.register(first);
      const multiplier = this.#operand(second);
      const sum = registers.takeOver(c);
      registers.bind(value, sum);
      // c·c + c and the like: the other inputs are read before the sum is written.
      this.#a.v("vfmadd231ps", [sum, multiplicand, multiplier]);
      return;
    }
    const dying = [a, b].find((input) => registers.diesAt(input, position));
    if (dying !== undefined) {
      const other = dying === a ? b : a;
      const multiplier = this.register(other);
      const addend = this.#operand(c);
      const product = registers.takeOver(dying);
      registers.bind(value, product);
      this.#a.v("vfmadd213ps", [product, multiplier, addend]);
      return;
    }
    const [first, second] = registers.find(a) === null ? [b, a] : [a, b];
    const multiplicand = this.register(first);
    const multiplier = this.#operand(second);
    const addend = registers.find(c);
    const sum = registers.take();
    if (addend !== null) this.#a.v("vmovups", [sum, addend]);
    else {
      const source = this.#frame.uniform(c);
      assert(source !== null, `${this.#program.name}: value ${c} is used before it is made`);
      this.#a.v("vbroadcastss", [sum, source]);
    }
    this.#a.v("vfmadd231ps", [sum, multiplicand, multiplier]);
    registers.bind(value, sum);
  }

  // Memory.

  /** The loop's current columns of an operand. */
  #columns(operand: OperandIndex, { copy }: Place): Memory {
    const { elementBytes } = this.#program.operands[operand]!;
    const pointer: Gp = this.#frame.pointer(operand);
    return mem(pointer, copy * LANES * elementBytes, COLUMN, elementBytes);
  }

  #load(result: Vector, operand: OperandIndex, place: Place): void {
    const { elementBytes } = this.#program.operands[operand]!;
    const op = ({ 1: "vpmovzxbd", 2: "vpmovzxwd", 4: "vmovups" } as const)[elementBytes];
    const mask: Mask | null = place.tail ? zeroing(TAIL) : null;
    this.#a.v(op, [result, this.#columns(operand, place)], mask);
  }

  #store(operand: OperandIndex, source: Vector, place: Place): void {
    const { elementBytes } = this.#program.operands[operand]!;
    const op = ({ 1: "vpmovdb", 2: "vpmovdw", 4: "vmovups" } as const)[elementBytes];
    const mask: Mask | null = place.tail ? merging(TAIL) : null;
    this.#a.v(op, [this.#columns(operand, place), source], mask);
  }

  #storeRounded(operand: OperandIndex, source: Vector, place: Place): void {
    const free = [this.#registers.take(), this.#registers.take()] as const;
    const target = this.#columns(operand, place);
    const tail = place.tail ? TAIL : null;
    const store = { source, target, tail, free, condition: CONDITION };
    this.#behind.push(emitRoundedStore(this.#a, store));
    for (const register of free) this.#registers.release(register);
  }

  /** Emits what stands behind the code. */
  emitBehind(): void {
    for (const emit of this.#behind) emit();
  }

  /** Emits `body` over column `index[row]`, passed over where there is no such column. */
  #atElement(operand: OperandIndex, index: OperandIndex, body: (element: Memory) => void): void {
    const a = this.#a;
    const end = a.label();
    a.mov(r.rax, this.#frame.element(index));
    a.movsxd(r.rax, mem(r.rax));
    a.cmp(r.rax, WIDTH);
    a.j("ae", end);
    body(mem(this.#frame.pointer(operand), 0, r.rax, 4));
    a.bind(end);
  }

  /** Points the operand at its row (row 0 where absent); rcx is −1 where present, else 0. */
  #locate(operand: OperandIndex, index: OperandIndex, element: number): void {
    const a = this.#a;
    const frame = this.#frame;
    const pointer = frame.pointer(operand);
    a.mov(r.rax, frame.element(index));
    a.movsxd(r.rax, mem(r.rax, 4 * element));
    a.mov(r.rcx, r.rax);
    a.sar(r.rcx, 63);
    a.xor(r.rcx, -1);
    a.and(r.rax, r.rcx);
    a.imul(r.rax, frame.stride(operand));
    a.add(r.rax, frame.base(operand));
    a.mov(pointer, r.rax);
    if (this.#program.split !== "columns") return;
    const { elementBytes } = this.#program.operands[operand]!;
    a.mov(r.rax, frame.fixed("taskStart"));
    a.lea(pointer, mem(pointer, 0, r.rax, elementBytes));
  }
}
