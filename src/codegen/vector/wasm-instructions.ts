/**
 * @file Emits the instructions of a row program, one by one, as WebAssembly: everything but tasks,
 * rows and loops.
 *
 * Every value has a local; the engine assigns registers. In the ragged end of a row a load repeats
 * its one element (or pair) in all lanes, and a store writes the first only.
 */
import { assert } from "../../base/errors.ts";
import type { Local, WasmFunction } from "../wasm/function.ts";
import type { VectorOp } from "../wasm/opcodes.ts";
import {
  type BinaryOp,
  type ColumnLoop,
  type Comparison,
  type Instruction,
  type OperandIndex,
  type RowProgram,
  type ShiftOp,
  scalarSlot,
  type UnaryOp,
  type Value,
} from "./program.ts";

export const LANES = 4;
export const SLOT_BYTES = 8;

const BINARY: Record<BinaryOp, VectorOp> = {
  add: "f32x4.add",
  sub: "f32x4.sub",
  mul: "f32x4.mul",
  div: "f32x4.div",
  // pmin(b, a) = a < b ? a : b
  min: "f32x4.pmin",
  max: "f32x4.pmax",
  and: "v128.and",
  or: "v128.or",
  xor: "v128.xor",
  integerAdd: "i32x4.add",
  integerSub: "i32x4.sub",
  integerMul: "i32x4.mul",
};
const SHIFT: Record<ShiftOp, VectorOp> = {
  shiftLeft: "i32x4.shl",
  shiftRight: "i32x4.shr_u",
  shiftRightSigned: "i32x4.shr_s",
};
const COMPARISON: Record<Comparison, VectorOp> = {
  less: "f32x4.lt",
  lessEqual: "f32x4.le",
  equal: "f32x4.eq",
  integerLess: "i32x4.lt_s",
  integerEqual: "i32x4.eq",
};
/**
 * Where in a column loop a copy of the body stands: vector `copy` of a round, or the ragged end.
 */
export interface Place {
  readonly tail: boolean;
  readonly copy: number;
}

/** The i32 locals of an operand. */
export interface OperandLocals {
  /** Address of the current row (or vector). */
  readonly pointer: Local;
  /** Bytes from row to row; task to task for partial vectors. */
  readonly stride: Local;
  /** Address of the first element. */
  readonly base: Local;
}

/** The i32 locals of a kernel: sizes, the task, and the running loop. */
export type WasmCounters = Readonly<
  Record<
    | ("rows" | "columns" | "perTask" | "task" | "rowsLeft" | "row")
    | ("width" | "left" | "column" | "offset"),
    Local
  >
>;

/** What the emitter needs to know of the kernel around it. */
export interface WasmKernel {
  readonly program: RowProgram;
  readonly w: WasmFunction;
  readonly relaxedSimd: boolean;
  readonly counters: WasmCounters;
  readonly operands: readonly OperandLocals[];
  /** Columns of a round in the ragged end: two where neighbours are exchanged. */
  readonly tailWidth: 1 | 2;
}

export class WasmInstructions {
  readonly #program: RowProgram;
  readonly #w: WasmFunction;
  readonly #relaxedSimd: boolean;
  readonly #counters: WasmCounters;
  readonly #operands: readonly OperandLocals[];
  readonly #tailWidth: 1 | 2;
  readonly #scratch: Local;
  readonly #locals = new Map<Value, Local>();

  constructor({ program, w, relaxedSimd, counters, operands, tailWidth }: WasmKernel) {
    this.#program = program;
    this.#w = w;
    this.#relaxedSimd = relaxedSimd;
    this.#counters = counters;
    this.#operands = operands;
    this.#tailWidth = tailWidth;
    this.#scratch = w.local("v128");
  }

  /** The local of a value. */
  local(value: Value): Local {
    const known = this.#locals.get(value);
    if (known !== undefined) return known;
    const local = this.#w.local("v128");
    this.#locals.set(value, local);
    return local;
  }

  /** Leaves a·b + addend on the stack. */
  fma(a: Value, b: Value, addend: Local): void {
    const w = this.#w.get(this.local(a)).get(this.local(b));
    if (this.#relaxedSimd) w.get(addend).op("f32x4.relaxed_madd");
    else w.op("f32x4.mul").get(addend).op("f32x4.add");
  }

  /** Emits one instruction other than a column loop. */
  emit(value: Value, place: Place): void {
    const instruction = this.#program.instructions[value]!;
    const w = this.#w;
    assert(instruction.op !== "columns", `${this.#program.name}: loops are the lowering's`);
    if (instruction.op === "store") this.#store(instruction.operand, instruction.a, place);
    else if (instruction.op === "storePerRow") {
      w.get(this.#operands[instruction.operand]!.pointer).get(this.local(instruction.a));
      w.laneMemory("v128.store32_lane", 0, instruction.element * 4);
    } else if (instruction.op === "storeElement") {
      this.#atElement(instruction.operand, instruction.index, () => {
        w.get(this.local(instruction.a)).laneMemory("v128.store32_lane", 0);
      });
    } else {
      this.#push(instruction, place);
      w.set(this.local(value));
    }
  }

  /**
   * Runs `body` with the address of column `index[row]` on the stack, if there is such a column.
   */
  #atElement(operand: OperandIndex, index: OperandIndex, body: () => void): void {
    const w = this.#w;
    const { offset, width } = this.#counters;
    w.get(this.#operands[index]!.pointer).memory("i32.load").tee(offset);
    w.get(width).op("i32.lt_u");
    w.when(() => {
      w.get(this.#operands[operand]!.pointer).get(offset).i32Const(2).op("i32.shl").op("i32.add");
      body();
    });
  }

  /** Leaves the instruction's result on the stack. */
  #push(instruction: Exclude<Instruction, ColumnLoop>, place: Place): void {
    const w = this.#w;
    switch (instruction.op) {
      case "constant": {
        const { bits } = instruction;
        w.v128Const([bits, bits, bits, bits]);
        return;
      }
      case "scalar": {
        const position = scalarSlot(this.#program, instruction.index);
        w.get(0)
          .memory("f64.load", position * SLOT_BYTES)
          .op("f32.demote_f64")
          .op("f32x4.splat");
        return;
      }
      case "fma":
        this.fma(instruction.a, instruction.b, this.local(instruction.c));
        return;
      case "select":
        w.get(this.local(instruction.x)).get(this.local(instruction.y));
        w.get(this.local(instruction.a)).get(this.local(instruction.b));
        w.op(COMPARISON[instruction.comparison]).op("v128.bitselect");
        return;
      case "load":
        this.#load(instruction.operand, place);
        return;
      case "loadPerRow":
        w.get(this.#operands[instruction.operand]!.pointer);
        w.memory("v128.load32_splat", instruction.element * 4);
        return;
      case "loadElement":
        w.v128Const([0, 0, 0, 0]).set(this.#scratch);
        this.#atElement(instruction.operand, instruction.index, () => {
          w.memory("v128.load32_splat").set(this.#scratch);
        });
        w.get(this.#scratch);
        return;
      case "locate":
        this.#locate(instruction.operand, instruction.index, instruction.element);
        return;
      case "columnIndex":
        this.#columnIndex(place);
        return;
      case "rowIndex":
        w.get(this.#counters.row).op("i32x4.splat");
        return;
      case "min":
      case "max":
        w.get(this.local(instruction.b)).get(this.local(instruction.a));
        w.op(BINARY[instruction.op]);
        return;
      case "sqrt":
      case "roundToInteger":
      case "toFloat":
      case "swapPairs":
        this.#unary(instruction.op, this.local(instruction.a));
        return;
      case "store":
      case "storeRounded":
      case "storePerRow":
      case "storeElement":
      case "reduced":
        return;
      default:
        w.get(this.local(instruction.a));
        if ("distance" in instruction) w.i32Const(instruction.distance).op(SHIFT[instruction.op]);
        else w.get(this.local(instruction.b)).op(BINARY[instruction.op]);
    }
  }

  #unary(op: UnaryOp, a: Local): void {
    const w = this.#w.get(a);
    if (op === "sqrt") w.op("f32x4.sqrt");
    else if (op === "toFloat") w.op("f32x4.convert_i32x4_s");
    else if (op === "roundToInteger") w.op("f32x4.nearest").op("i32x4.trunc_sat_f32x4_s");
    else w.get(a).shuffle32([1, 0, 3, 2]);
  }

  /** Points the operand at its row (row 0 where absent) and leaves −1 or 0 in every lane. */
  #locate(operand: OperandIndex, index: OperandIndex, element: number): void {
    const w = this.#w;
    const { pointer, base, stride } = this.#operands[operand]!;
    const { offset, task, perTask, column } = this.#counters;
    w.get(this.#operands[index]!.pointer)
      .memory("i32.load", element * 4)
      .set(offset);
    w.get(offset).i32Const(31).op("i32.shr_s").i32Const(-1).op("i32.xor").set(column);
    w.get(offset).get(column).op("i32.and").get(stride).op("i32.mul");
    w.get(base).op("i32.add");
    if (this.#program.split === "columns") {
      const { elementBytes } = this.#program.operands[operand]!;
      w.get(task).get(perTask).op("i32.mul").i32Const(elementBytes).op("i32.mul");
      w.op("i32.add");
    }
    w.set(pointer).get(column).op("i32x4.splat");
  }

  #columnIndex(place: Place): void {
    const w = this.#w.get(this.#counters.column).op("i32x4.splat");
    if (!place.tail) {
      const first = place.copy * LANES;
      w.v128Const([first, first + 1, first + 2, first + 3]).op("i32x4.add");
    } else if (this.#tailWidth === 2) w.v128Const([0, 1, 0, 1]).op("i32x4.add");
  }

  /** Leaves the address of the loop's current column. */
  #address(operand: OperandIndex): void {
    const w = this.#w.get(this.#operands[operand]!.pointer).get(this.#counters.column);
    const { elementBytes } = this.#program.operands[operand]!;
    if (elementBytes !== 1) w.i32Const(Math.log2(elementBytes)).op("i32.shl");
    w.op("i32.add");
  }

  #load(operand: OperandIndex, { tail, copy }: Place): void {
    const w = this.#w;
    const { elementBytes } = this.#program.operands[operand]!;
    const offset = copy * LANES * elementBytes;
    this.#address(operand);
    if (tail && this.#tailWidth === 2) {
      assert(elementBytes !== 1, `${this.#program.name}: pairs of bytes are not supported`);
      if (elementBytes === 4) w.memory("v128.load64_splat");
      else w.memory("v128.load32_splat").op("i32x4.extend_low_i16x8_u");
    } else if (elementBytes === 4) w.memory(tail ? "v128.load32_splat" : "v128.load", offset);
    else if (elementBytes === 2) {
      if (tail) w.memory("i32.load16_u").op("i32x4.splat");
      else w.memory("v128.load16x4_u", offset);
    } else if (tail) w.memory("i32.load8_u").op("i32x4.splat");
    else {
      // Four bytes, widened twice.
      w.memory("v128.load32_zero", offset).op("i16x8.extend_low_i8x16_u");
      w.op("i32x4.extend_low_i16x8_u");
    }
  }

  #store(operand: OperandIndex, a: Value, { tail, copy }: Place): void {
    const w = this.#w;
    const { elementBytes } = this.#program.operands[operand]!;
    const columns = tail ? this.#tailWidth : LANES;
    const offset = copy * LANES * elementBytes;
    this.#address(operand);
    w.get(this.local(a));
    if (columns > 1 && elementBytes < 4) {
      // The low bytes of each lane, side by side.
      const stride = 4 / elementBytes;
      const low = Array.from({ length: 16 }, (_, byte) =>
        elementBytes === 1 ? (byte * stride) % 16 : ((byte >> 1) * 4 + (byte & 1)) % 16,
      );
      w.get(this.local(a)).shuffle8(low);
    }
    const bytes = columns * elementBytes;
    if (bytes === 16) w.memory("v128.store", offset);
    else if (bytes === 8) w.laneMemory("v128.store64_lane", 0, offset);
    else if (bytes === 4) w.laneMemory("v128.store32_lane", 0, offset);
    else if (bytes === 2) w.laneMemory("v128.store16_lane", 0, offset);
    else w.laneMemory("v128.store8_lane", 0, offset);
  }
}
