/**
 * @file Lowers a row program to WebAssembly: four lanes, and a ragged end one column (or one pair)
 * at a time.
 *
 * The function is `(slots, firstTask, endTask)`, all i32; `slots` is the byte offset of the
 * launch's f64 slots in the memory. In the ragged end a sum adds the first lane (or pair) only.
 */
import { type Local, WasmFunction } from "../wasm/function.ts";
import { assembleModule } from "../wasm/module.ts";
import type { VectorOp } from "../wasm/opcodes.ts";
import {
  type ColumnLoop,
  type OperandIndex,
  operandSlot,
  type Reduction,
  type RowProgram,
  type Value,
} from "./program.ts";
import {
  LANES,
  type OperandLocals,
  type Place,
  SLOT_BYTES,
  type WasmCounters,
  WasmInstructions,
} from "./wasm-instructions.ts";

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

/** Accumulators of a reduction, and vectors of a round in a loop that has one. */
const PARTS = 4;
const PLAIN_UNROLL = 2;

const OUTSIDE_LOOPS: Place = { tail: false, copy: 0 };
const FIRST_LANE = [-1, 0, 0, 0] as const;
const FIRST_PAIR = [-1, -1, 0, 0] as const;
const NEGATIVE_INFINITY_BITS = 0xff800000 | 0;

class WasmLowering {
  readonly #program: RowProgram;
  readonly #w = new WasmFunction(["i32", "i32", "i32"]);
  readonly #parts = new Map<Value, Local[]>();
  readonly #operands: readonly OperandLocals[];
  readonly #counters: WasmCounters;
  readonly #scratch: Local;
  readonly #tailWidth: 1 | 2;
  readonly #instructions: WasmInstructions;

  constructor(program: RowProgram, { relaxedSimd }: WasmLoweringOptions) {
    const w = this.#w;
    const i32 = (): Local => w.local("i32");
    this.#program = program;
    this.#counters = {
      ...{ rows: i32(), columns: i32(), perTask: i32(), task: i32(), rowsLeft: i32(), row: i32() },
      ...{ width: i32(), left: i32(), column: i32(), offset: i32() },
    };
    this.#operands = program.operands.map(() => ({
      ...{ pointer: i32(), stride: i32(), base: i32() },
    }));
    this.#scratch = w.local("v128");
    this.#tailWidth = program.instructions.some(({ op }) => op === "swapPairs") ? 2 : 1;
    this.#instructions = new WasmInstructions({
      ...{ program, w, relaxedSimd, counters: this.#counters, operands: this.#operands },
      tailWidth: this.#tailWidth,
    });
  }

  lower(): WasmFunction {
    const w = this.#w;
    this.#readSlots();
    for (const value of this.#program.uniforms) this.#instructions.emit(value, OUTSIDE_LOOPS);
    const { task } = this.#counters;
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
    [this.#counters.rows, this.#counters.columns, this.#counters.perTask].forEach(
      (local, index) => {
        this.#integerSlot(index, local);
      },
    );
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
    const { rows, columns, perTask, task, rowsLeft, row, width } = this.#counters;
    const byRows = this.#program.split === "rows";
    const [total, part, other, whole] = byRows
      ? [rows, rowsLeft, width, columns]
      : [columns, width, rowsLeft, rows];
    // part = min(perTask, total − task·perTask)
    w.get(total).get(task).get(perTask).op("i32.mul").op("i32.sub").set(part);
    w.get(perTask).get(part).get(perTask).get(part).op("i32.lt_s").op("select").set(part);
    w.get(whole).set(other);
    if (byRows) w.get(task).get(perTask).op("i32.mul").set(row);
    else w.i32Const(0).set(row);
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
    const { task, perTask } = this.#counters;
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
    const { width, left, offset } = this.#counters;
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
    for (const value of this.#program.body) {
      const instruction = this.#program.instructions[value]!;
      if (instruction.op === "columns") this.#columns(instruction);
      else this.#instructions.emit(value, OUTSIDE_LOOPS);
    }
    this.#program.operands.forEach(({ kind }, index) => {
      const { pointer, stride } = this.#operands[index]!;
      if (kind === "row" || kind === "perRow") this.#w.addLocal(pointer, stride);
    });
    this.#w.addConst(this.#counters.row, 1);
  }

  // Column loops.

  #columns(loop: ColumnLoop): void {
    const w = this.#w;
    const { left, column, width } = this.#counters;
    if (loop.start === null) w.i32Const(0).set(column);
    else this.#clampedLimit(loop.start, column);
    if (loop.end === null) w.get(width).get(column).op("i32.sub").set(left);
    else {
      this.#clampedLimit(loop.end, left);
      w.get(left).get(column).op("i32.sub").set(left);
    }
    if (loop.where !== null) {
      w.get(left).get(this.#instructions.local(loop.where)).lane("i32x4.extract_lane", 0);
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
    for (const value of loop.body) this.#instructions.emit(value, place);
    for (const reduction of loop.reductions) this.#accumulate(reduction, place);
  }

  /** local ← the per-row i32 at `operand`, clamped to [0, width]. */
  #clampedLimit(operand: OperandIndex, local: Local): void {
    const w = this.#w;
    const { width } = this.#counters;
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
      w.get(part).get(this.#instructions.local(reduction.a)).op("f32x4.pmax").set(part);
      return;
    }
    if (reduction.kind === "sumOfProducts" && !place.tail) {
      this.#instructions.fma(reduction.a, reduction.b, part);
      w.set(part);
      return;
    }
    w.get(part).get(this.#instructions.local(reduction.a));
    if (reduction.kind === "sumOfProducts")
      w.get(this.#instructions.local(reduction.b)).op("f32x4.mul");
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
    w.get(this.#scratch).set(this.#instructions.local(value));
  }
}
