/**
 * @file Lowers a row program to WebAssembly: four lanes, and a ragged end one column (or one pair) at a time.
 *
 * The function is `(slots, firstTask, endTask)`, all i32; `slots` is the byte offset of the launch's f64 slots in
 * the memory. In the ragged end a load repeats its one element in all lanes, a store writes the first lane, and a sum
 * adds the first lane only; the engine assigns registers.
 */
import { assert } from "../../base/errors.ts";
import { type Local, WasmFunction } from "../wasm/function.ts";
import { assembleModule } from "../wasm/module.ts";
import type { VectorOp } from "../wasm/opcodes.ts";
import type {
  BinaryOp,
  ColumnLoop,
  Comparison,
  Instruction,
  OperandIndex,
  Reduction,
  RowProgram,
  ShiftOp,
  UnaryOp,
  Value,
} from "./program.ts";
import { operandSlot, scalarSlot } from "./program.ts";

export interface WasmLoweringOptions {
  /** Whether `fma` may be `f32x4.relaxed_madd`. */
  readonly relaxedSimd: boolean;
}

/** The module's bytes; it exports `run`. */
export function lowerToWasm(
  program: RowProgram,
  options: WasmLoweringOptions,
): Uint8Array<ArrayBuffer> {
  return assembleModule({ run: new WasmLowering(program, options).lower() });
}

const LANES = 4;
/** Accumulators of a reduction, and vectors of a round in a loop that has one. */
const PARTS = 4;
const PLAIN_UNROLL = 2;
const SLOT_BYTES = 8;

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
const FIRST_LANE = [-1, 0, 0, 0] as const;
const FIRST_PAIR = [-1, -1, 0, 0] as const;
const NEGATIVE_INFINITY_BITS = 0xff800000 | 0;

/** Where in a column loop a copy of the body stands: vector `copy` of a round, or the ragged end. */
interface Place {
  readonly tail: boolean;
  readonly copy: number;
}

/** The i32 locals of an operand. */
interface OperandLocals {
  /** Address of the current row (or vector). */
  readonly pointer: Local;
  /** Bytes from row to row; task to task for partial vectors. */
  readonly stride: Local;
  /** Address of the first element. */
  readonly base: Local;
}

class WasmLowering {
  readonly #program: RowProgram;
  readonly #options: WasmLoweringOptions;
  readonly #w = new WasmFunction(["i32", "i32", "i32"]);
  readonly #locals = new Map<Value, Local>();
  readonly #parts = new Map<Value, Local[]>();
  readonly #operands: OperandLocals[];
  readonly #i32: Record<
    "rows" | "columns" | "perTask" | "task" | "rowsLeft" | "width" | "left" | "column" | "offset",
    Local
  >;
  readonly #scratch: Local;
  readonly #tailWidth: 1 | 2;

  constructor(program: RowProgram, options: WasmLoweringOptions) {
    this.#program = program;
    this.#options = options;
    const i32 = (): Local => this.#w.local("i32");
    this.#i32 = {
      ...{ rows: i32(), columns: i32(), perTask: i32(), task: i32(), rowsLeft: i32() },
      ...{ width: i32(), left: i32(), column: i32(), offset: i32() },
    };
    this.#operands = program.operands.map(() => ({
      ...{ pointer: i32(), stride: i32(), base: i32() },
    }));
    this.#scratch = this.#w.local("v128");
    this.#tailWidth = program.instructions.some(({ op }) => op === "swapPairs") ? 2 : 1;
  }

  lower(): WasmFunction {
    const w = this.#w;
    this.#readSlots();
    for (const value of this.#program.uniforms) this.#emit(value, { tail: false, copy: 0 });
    const { task } = this.#i32;
    w.get(1).set(task);
    w.get(task).get(2).op("i32.lt_s");
    w.when(() =>
      w.loop(() => {
        this.#task();
        w.addConst(task, 1);
        w.get(task).get(2).op("i32.lt_s").brIf(0);
      }),
    );
    return w;
  }

  // Slots, tasks, rows.

  #integerSlot(index: number, local: Local): void {
    this.#w
      .get(0)
      .memory("f64.load", index * SLOT_BYTES)
      .op("i32.trunc_f64_u")
      .set(local);
  }

  #readSlots(): void {
    const w = this.#w;
    [this.#i32.rows, this.#i32.columns, this.#i32.perTask].forEach((local, index) => {
      this.#integerSlot(index, local);
    });
    this.#program.operands.forEach(({ elementBytes }, index) => {
      const { base, stride } = this.#operands[index]!;
      this.#integerSlot(operandSlot(index), base);
      this.#integerSlot(operandSlot(index) + 1, stride);
      w.get(stride).i32Const(elementBytes).op("i32.mul").set(stride);
    });
  }

  /** rowsLeft and width of the task, the operands' pointers, then its rows. */
  #task(): void {
    const w = this.#w;
    const { rows, columns, perTask, task, rowsLeft, width } = this.#i32;
    const byRows = this.#program.split === "rows";
    const [total, part, other, whole] = byRows
      ? [rows, rowsLeft, width, columns]
      : [columns, width, rowsLeft, rows];
    // part = min(perTask, total − task·perTask)
    w.get(total).get(task).get(perTask).op("i32.mul").op("i32.sub").set(part);
    w.get(perTask).get(part).get(perTask).get(part).op("i32.lt_s").op("select").set(part);
    w.get(whole).set(other);
    this.#program.operands.forEach((_, index) => {
      this.#pointAtTask(index);
    });
    this.#clearPartials();
    w.get(rowsLeft).i32Const(0).op("i32.gt_s");
    w.when(() => w.countdown(rowsLeft, 1, () => this.#row()));
  }

  #pointAtTask(index: OperandIndex): void {
    const w = this.#w;
    const { kind, elementBytes } = this.#program.operands[index]!;
    const { pointer, base, stride } = this.#operands[index]!;
    const { task, perTask } = this.#i32;
    w.get(base);
    if (this.#program.split === "columns") {
      if (kind !== "perRow") {
        w.get(task).get(perTask).op("i32.mul").i32Const(elementBytes).op("i32.mul");
        w.op("i32.add");
      }
    } else if (kind === "row" || kind === "perRow") {
      w.get(task).get(perTask).op("i32.mul").get(stride).op("i32.mul").op("i32.add");
    } else if (kind === "partial") w.get(task).get(stride).op("i32.mul").op("i32.add");
    w.set(pointer);
  }

  #clearPartials(): void {
    const w = this.#w;
    const { width, left, offset } = this.#i32;
    this.#program.operands.forEach(({ kind }, index) => {
      if (kind !== "partial") return;
      w.get(width).set(left).i32Const(0).set(offset);
      w.countdown(left, 1, () => {
        w.get(this.#operands[index]!.pointer).get(offset).op("i32.add").i32Const(0);
        w.memory("i32.store").addConst(offset, 4);
      });
    });
  }

  #row(): void {
    for (const value of this.#program.body) this.#emit(value, { tail: false, copy: 0 });
    this.#program.operands.forEach(({ kind }, index) => {
      const { pointer, stride } = this.#operands[index]!;
      if (kind === "row" || kind === "perRow") this.#w.addLocal(pointer, stride);
    });
  }

  // Column loops.

  #columns(loop: ColumnLoop): void {
    const w = this.#w;
    const { left, column, width } = this.#i32;
    if (loop.start === null) w.i32Const(0).set(column);
    else this.#clampedLimit(loop.start, column);
    if (loop.end === null) w.get(width).get(column).op("i32.sub").set(left);
    else {
      this.#clampedLimit(loop.end, left);
      w.get(left).get(column).op("i32.sub").set(left);
    }
    if (loop.where !== null) {
      w.get(left).get(this.#local(loop.where)).lane("i32x4.extract_lane", 0);
      w.op("i32.and").set(left);
    }
    const unroll = loop.reductions.length > 0 ? PARTS : PLAIN_UNROLL;
    for (const reduction of loop.reductions) this.#startReduction(reduction);
    const round = (copies: number): void => {
      w.countdown(left, copies * LANES, () => {
        for (let copy = 0; copy < copies; copy++) this.#copy(loop, { tail: false, copy });
        w.addConst(column, copies * LANES);
      });
    };
    round(unroll);
    round(1);
    w.countdown(left, this.#tailWidth, () => {
      this.#copy(loop, { tail: true, copy: 0 });
      w.addConst(column, this.#tailWidth);
    });
    for (const reduction of loop.reductions) this.#finishReduction(reduction);
  }

  #copy(loop: ColumnLoop, place: Place): void {
    for (const value of loop.body) this.#emit(value, place);
    for (const reduction of loop.reductions) this.#accumulate(reduction, place);
  }

  /** local ← the per-row i32 at `operand`, clamped to [0, width]. */
  #clampedLimit(operand: OperandIndex, local: Local): void {
    const w = this.#w;
    const { width } = this.#i32;
    w.get(this.#operands[operand]!.pointer).memory("i32.load").set(local);
    w.get(local).get(width).get(local).get(width).op("i32.lt_s").op("select").set(local);
    w.get(local).i32Const(0).get(local).i32Const(0).op("i32.gt_s").op("select").set(local);
  }

  // Reductions: PARTS accumulators of LANES lanes, folded in a fixed order.

  #startReduction({ kind, value }: Reduction): void {
    const bits = kind === "max" ? NEGATIVE_INFINITY_BITS : 0;
    const parts = this.#parts.get(value) ?? [];
    for (let part = 0; part < PARTS; part++) {
      parts[part] ??= this.#w.local("v128");
      this.#w.v128Const([bits, bits, bits, bits]).set(parts[part]!);
    }
    this.#parts.set(value, parts);
  }

  #accumulate(reduction: Reduction, place: Place): void {
    const w = this.#w;
    const part = this.#parts.get(reduction.value)![place.copy]!;
    if (reduction.kind === "max") {
      // max(element, part): an element that is NaN leaves the part as it is.
      w.get(part).get(this.#local(reduction.a)).op("f32x4.pmax").set(part);
      return;
    }
    if (reduction.kind === "sumOfProducts" && !place.tail) {
      this.#fma(reduction.a, reduction.b, part);
      w.set(part);
      return;
    }
    w.get(part).get(this.#local(reduction.a));
    if (reduction.kind === "sumOfProducts") w.get(this.#local(reduction.b)).op("f32x4.mul");
    if (place.tail) w.v128Const(this.#tailWidth === 1 ? FIRST_LANE : FIRST_PAIR).op("v128.and");
    w.op("f32x4.add").set(part);
  }

  #finishReduction({ kind, value }: Reduction): void {
    const w = this.#w;
    const op: VectorOp = kind === "max" ? "f32x4.pmax" : "f32x4.add";
    const [first, second, third, fourth] = this.#parts.get(value)! as [Local, Local, Local, Local];
    w.get(first).get(second).op(op).get(third).get(fourth).op(op).op(op).set(this.#scratch);
    for (const lanes of [[2, 3, 0, 1] as const, [1, 0, 3, 2] as const]) {
      w.get(this.#scratch).get(this.#scratch).get(this.#scratch).shuffle32(lanes);
      w.op(op).set(this.#scratch);
    }
    w.get(this.#scratch).set(this.#local(value));
  }

  // Instructions.

  #local(value: Value): Local {
    const known = this.#locals.get(value);
    if (known !== undefined) return known;
    const local = this.#w.local("v128");
    this.#locals.set(value, local);
    return local;
  }

  #fma(a: Value, b: Value, addend: Local): void {
    const w = this.#w.get(this.#local(a)).get(this.#local(b));
    if (this.#options.relaxedSimd) w.get(addend).op("f32x4.relaxed_madd");
    else w.op("f32x4.mul").get(addend).op("f32x4.add");
  }

  #emit(value: Value, place: Place): void {
    const instruction = this.#program.instructions[value]!;
    const w = this.#w;
    if (instruction.op === "columns") this.#columns(instruction);
    else if (instruction.op === "store") this.#store(instruction.operand, instruction.a, place);
    else if (instruction.op === "storePerRow") {
      w.get(this.#operands[instruction.operand]!.pointer).get(this.#local(instruction.a));
      w.laneMemory("v128.store32_lane", 0, instruction.element * 4);
    } else {
      this.#push(instruction, place);
      w.set(this.#local(value));
    }
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
        this.#fma(instruction.a, instruction.b, this.#local(instruction.c));
        return;
      case "select":
        w.get(this.#local(instruction.x)).get(this.#local(instruction.y));
        w.get(this.#local(instruction.a)).get(this.#local(instruction.b));
        w.op(COMPARISON[instruction.comparison]).op("v128.bitselect");
        return;
      case "load":
        this.#load(instruction.operand, place);
        return;
      case "loadPerRow":
        w.get(this.#operands[instruction.operand]!.pointer);
        w.memory("v128.load32_splat", instruction.element * 4);
        return;
      case "locate":
        this.#locate(instruction.operand, instruction.index, instruction.element);
        return;
      case "columnIndex":
        this.#columnIndex(place);
        return;
      case "min":
      case "max":
        w.get(this.#local(instruction.b)).get(this.#local(instruction.a));
        w.op(BINARY[instruction.op]);
        return;
      case "shiftLeft":
      case "shiftRight":
      case "shiftRightSigned":
        w.get(this.#local(instruction.a)).i32Const(instruction.distance).op(SHIFT[instruction.op]);
        return;
      case "sqrt":
      case "roundToInteger":
      case "toFloat":
      case "swapPairs":
        this.#unary(instruction.op, this.#local(instruction.a));
        return;
      case "store":
      case "storePerRow":
      case "reduced":
        return;
      default:
        w.get(this.#local(instruction.a)).get(this.#local(instruction.b));
        w.op(BINARY[instruction.op]);
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
    const { offset, task, perTask, column } = this.#i32;
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
    const w = this.#w.get(this.#i32.column).op("i32x4.splat");
    if (!place.tail) {
      const first = place.copy * LANES;
      w.v128Const([first, first + 1, first + 2, first + 3]).op("i32x4.add");
    } else if (this.#tailWidth === 2) w.v128Const([0, 1, 0, 1]).op("i32x4.add");
  }

  /** Leaves the address of the loop's current column. */
  #address(operand: OperandIndex): void {
    const w = this.#w.get(this.#operands[operand]!.pointer).get(this.#i32.column);
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
    w.get(this.#local(a));
    if (columns > 1 && elementBytes < 4) {
      // Narrowing saturates: only the low bits may be set.
      const mask = elementBytes === 2 ? 0xffff : 0xff;
      w.v128Const([mask, mask, mask, mask]).op("v128.and").tee(this.#scratch);
      w.get(this.#scratch).op("i16x8.narrow_i32x4_u");
      if (elementBytes === 1) w.tee(this.#scratch).get(this.#scratch).op("i8x16.narrow_i16x8_u");
    }
    const bytes = columns * elementBytes;
    if (bytes === 16) w.memory("v128.store", offset);
    else if (bytes === 8) w.laneMemory("v128.store64_lane", 0, offset);
    else if (bytes === 4) w.laneMemory("v128.store32_lane", 0, offset);
    else if (bytes === 2) w.laneMemory("v128.store16_lane", 0, offset);
    else w.laneMemory("v128.store8_lane", 0, offset);
  }
}
