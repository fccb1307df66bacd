/**
 * @file Lowers a row program to x86-64 machine code: sixteen lanes, and a ragged end under a mask.
 *
 *     void kernel(const double *slots, int64_t firstTask, int64_t endTask, uint8_t *memoryBase)
 *
 * The prologue turns the slots into addresses, byte strides and f32 scalars in the frame. Vector
 * registers are handed out by `x64-registers.ts`: a first pass without pinned uniforms finds how
 * many the values need, the second pins the most used uniforms into the rest. A column loop runs
 * rounds of whole vectors, then vectors under mask k1.
 */
import { defined } from "../../base/errors.ts";
import type { X64 } from "../x64/assembler.ts";
import { emitKernel, KERNEL_ARGUMENTS, loadSlot } from "../x64/kernel-function.ts";
import { type Gp, mem, merging, r, type Vector, xmm } from "../x64/operands.ts";
import { analyseLiveness, type Liveness, uniformWeights } from "./liveness.ts";
import {
  type ColumnLoop,
  type OperandIndex,
  operandSlot,
  type Reduction,
  type RowProgram,
  scalarSlot,
  type Value,
} from "./program.ts";
import { COLUMN, LEFT, WIDTH, X64Frame } from "./x64-frame.ts";
import { LANES, type Place, TAIL, X64Instructions } from "./x64-instructions.ts";
import { VectorRegisters } from "./x64-registers.ts";
import { withRoundedStores } from "./x64-rounded-stores.ts";

/** Machine code of the kernel; needs AVX-512 F, BW, VL, DQ and BMI2, AVX512_BF16 if it is there. */
export function lowerToX64(
  recorded: RowProgram,
  { hasBf16 }: { readonly hasBf16: boolean },
): Uint8Array {
  const program = hasBf16 ? withRoundedStores(recorded) : recorded;
  const measured = lowerWith(program, []);
  const weights = [...uniformWeights(program)].filter(([, weight]) => weight > 0);
  weights.sort((a, b) => b[1] - a[1]);
  const spare = VectorRegisters.count - measured.peak;
  const pinned = weights.slice(0, spare).map(([value]) => value);
  return pinned.length === 0 ? measured.code : lowerWith(program, pinned).code;
}

/** Accumulators of a reduction, and vectors of a round in a loop that has one. */
const PARTS = 4;
const PLAIN_UNROLL = 2;
const LINE_BYTES = 64;
const NEGATIVE_INFINITY_BITS = 0xff800000 | 0;
/** Exchanges of quarters, then of lanes within quarters, that fold a vector into every lane. */
const SWAP_HALVES = 0x4e;
const SWAP_NEIGHBOURS = 0xb1;

function lowerWith(
  program: RowProgram,
  pinned: readonly Value[],
): { code: Uint8Array; peak: number } {
  const frame = new X64Frame(program);
  const liveness = analyseLiveness(program);
  const registers = new VectorRegisters(program.name, liveness);
  const code = emitKernel({
    numLocals: frame.numLocals,
    body: (a) => new X64Lowering({ program, a, frame, liveness, registers }).lower(pinned),
  });
  return { code, peak: registers.peak };
}

interface Parts {
  readonly program: RowProgram;
  readonly a: X64;
  readonly frame: X64Frame;
  readonly liveness: Liveness;
  readonly registers: VectorRegisters;
}

class X64Lowering {
  readonly #program: RowProgram;
  readonly #a: X64;
  readonly #frame: X64Frame;
  readonly #liveness: Liveness;
  readonly #registers: VectorRegisters;
  readonly #instructions: X64Instructions;

  constructor({ program, a, frame, liveness, registers }: Parts) {
    this.#program = program;
    this.#a = a;
    this.#frame = frame;
    this.#liveness = liveness;
    this.#registers = registers;
    this.#instructions = new X64Instructions(program, a, frame, registers);
  }

  lower(pinned: readonly Value[]): void {
    const a = this.#a;
    this.#readSlots();
    for (const value of pinned) {
      const register = this.#registers.take();
      this.#registers.bind(value, register);
      a.v("vbroadcastss", [register, this.#frame.uniform(value)!]);
    }
    const top = a.label();
    const end = a.label();
    a.bind(top);
    a.mov(r.rax, this.#frame.fixed("task"));
    a.cmp(r.rax, this.#frame.fixed("endTask"));
    a.j("ge", end);
    this.#task();
    a.add(this.#frame.fixed("task"), 1);
    a.jmp(top);
    this.#instructions.emitBehind();
    a.bind(end);
  }

  // Slots, tasks, rows.

  #readSlots(): void {
    const a = this.#a;
    const frame = this.#frame;
    a.mov(frame.fixed("task"), KERNEL_ARGUMENTS.firstTask);
    a.mov(frame.fixed("endTask"), KERNEL_ARGUMENTS.endTask);
    (["rows", "columns", "perTask"] as const).forEach((name, index) => {
      loadSlot(a, r.rax, index);
      a.mov(frame.fixed(name), r.rax);
    });
    this.#program.operands.forEach(({ elementBytes }, index) => {
      loadSlot(a, r.rax, operandSlot(index));
      a.add(r.rax, KERNEL_ARGUMENTS.memoryBase);
      a.mov(frame.base(index), r.rax);
      loadSlot(a, r.rax, operandSlot(index) + 1);
      a.imul(r.rax, r.rax, elementBytes);
      a.mov(frame.stride(index), r.rax);
    });
    this.#storeUniforms();
    if (!this.#program.instructions.some(({ op }) => op === "columnIndex")) return;
    for (let lane = 0; lane < LANES; lane++) {
      a.mov(r.rax, lane);
      a.mov32(frame.iota(lane), r.rax);
    }
  }

  #storeUniforms(): void {
    const a = this.#a;
    for (const value of this.#program.uniforms) {
      const instruction = this.#program.instructions[value]!;
      const target = this.#frame.uniform(value)!;
      if (instruction.op === "constant") {
        a.mov(r.rax, instruction.bits);
        a.mov32(target, r.rax);
      } else if (instruction.op === "scalar") {
        const position = scalarSlot(this.#program, instruction.index);
        const source = mem(KERNEL_ARGUMENTS.slots, 8 * position);
        a.v("vpxord", [xmm(0), xmm(0), xmm(0)]);
        a.v("vcvtsd2ss", [xmm(0), xmm(0), source]);
        a.v("vmovss m32", [target, xmm(0)]);
      }
    }
  }

  #task(): void {
    const a = this.#a;
    const frame = this.#frame;
    const byRows = this.#program.split === "rows";
    // rcx = min(perTask, total − task·perTask)
    a.imul(r.rax, frame.fixed("perTask"));
    a.mov(frame.fixed("taskStart"), r.rax);
    a.mov(r.rcx, frame.fixed(byRows ? "rows" : "columns"));
    a.sub(r.rcx, r.rax);
    a.cmp(r.rcx, frame.fixed("perTask"));
    a.cmov("g", r.rcx, frame.fixed("perTask"));
    if (byRows) {
      a.mov(frame.fixed("row"), r.rax);
      a.mov(frame.fixed("rowsLeft"), r.rcx);
      a.mov(WIDTH, frame.fixed("columns"));
    } else {
      a.mov(WIDTH, r.rcx);
      a.mov(frame.fixed("row"), 0);
      a.mov(r.rcx, frame.fixed("rows"));
      a.mov(frame.fixed("rowsLeft"), r.rcx);
    }
    for (let index = 0; index < this.#program.operands.length; index++) this.#pointAtTask(index);
    this.#clearPartials();
    const top = a.label();
    const end = a.label();
    a.cmp(frame.fixed("rowsLeft"), 0);
    a.j("le", end);
    a.align(32);
    a.bind(top);
    this.#row();
    if (this.#countsRows) a.add(frame.fixed("row"), 1);
    a.sub(frame.fixed("rowsLeft"), 1);
    a.j("g", top);
    a.bind(end);
  }

  get #countsRows(): boolean {
    return this.#program.instructions.some(({ op }) => op === "rowIndex");
  }

  #pointAtTask(index: OperandIndex): void {
    const a = this.#a;
    const frame = this.#frame;
    const { kind, elementBytes } = this.#program.operands[index]!;
    if (kind === "perRow") {
      a.mov(r.rax, frame.stride(index));
      if (this.#program.split === "rows") a.imul(r.rax, frame.fixed("taskStart"));
      else a.mov(r.rax, 0);
      a.add(r.rax, frame.base(index));
      a.mov(frame.element(index), r.rax);
      return;
    }
    const pointer = frame.pointer(index);
    if (this.#program.split === "columns") {
      a.mov(pointer, frame.base(index));
      a.mov(r.rax, frame.fixed("taskStart"));
      a.lea(pointer, mem(pointer, 0, r.rax, elementBytes));
    } else if (kind === "vector" || kind === "gathered") a.mov(pointer, frame.base(index));
    else {
      a.mov(pointer, frame.fixed(kind === "partial" ? "task" : "taskStart"));
      a.imul(pointer, frame.stride(index));
      a.add(pointer, frame.base(index));
    }
  }

  #clearPartials(): void {
    const a = this.#a;
    this.#program.operands.forEach(({ kind }, index) => {
      if (kind !== "partial") return;
      const zero = this.#registers.take();
      a.v("vpxord", [zero, zero, zero]);
      a.mov(COLUMN, 0);
      a.mov(LEFT, WIDTH);
      const target = mem(this.#frame.pointer(index), 0, COLUMN, 4);
      this.#rounds(1, () => a.v("vmovups", [target, zero]));
      this.#masked(() => a.v("vmovups", [target, zero], merging(TAIL)));
      this.#registers.release(zero);
    });
  }

  #row(): void {
    const a = this.#a;
    for (const value of this.#program.body) {
      const instruction = this.#program.instructions[value]!;
      const position = this.#liveness.position.get(value)!;
      if (instruction.op === "columns") this.#columns(instruction, position);
      else this.#instructions.emit(value, position, { tail: false, copy: 0 });
      this.#registers.expire(position);
    }
    this.#program.operands.forEach(({ kind }, index) => {
      if (kind === "row") a.add(this.#frame.pointer(index), this.#frame.stride(index));
      if (kind !== "perRow") return;
      a.mov(r.rax, this.#frame.stride(index));
      a.add(this.#frame.element(index), r.rax);
    });
  }

  // Column loops.

  #columns(loop: ColumnLoop, position: number): void {
    const a = this.#a;
    if (loop.start === null) a.mov(COLUMN, 0);
    else this.#clampedLimit(COLUMN, loop.start);
    if (loop.end === null) a.mov(LEFT, WIDTH);
    else this.#clampedLimit(LEFT, loop.end);
    a.sub(LEFT, COLUMN);
    if (loop.where !== null) {
      a.v("vmovd r32", [r.rax, xmm(this.#registers.find(loop.where)!.index)]);
      a.movsxd(r.rax, r.rax);
      a.and(LEFT, r.rax);
    }
    const parts = loop.reductions.map((reduction) => this.#startReduction(reduction));
    const unroll = loop.reductions.length > 0 ? PARTS : PLAIN_UNROLL;
    const nextRows = this.#nextRows(loop.ahead);
    this.#rounds(unroll, () => {
      for (let copy = 0; copy < unroll; copy++) {
        this.#copy(loop, position, parts, { tail: false, copy });
        for (const [operand, pointer] of nextRows) this.#prefetch(operand, pointer, copy);
      }
    });
    this.#masked(() => this.#copy(loop, position, parts, { tail: true, copy: 0 }));
    loop.reductions.forEach((reduction, index) => {
      this.#finishReduction(reduction, parts[index]!);
    });
  }

  /** Rounds of whole vectors while there are enough columns. */
  #rounds(vectors: number, body: () => void): void {
    const a = this.#a;
    const top = a.label();
    const end = a.label();
    a.cmp(LEFT, vectors * LANES);
    a.j("l", end);
    a.align(32);
    a.bind(top);
    body();
    a.add(COLUMN, vectors * LANES);
    a.sub(LEFT, vectors * LANES);
    a.cmp(LEFT, vectors * LANES);
    a.j("ge", top);
    a.bind(end);
  }

  /** Points a register at the next row of each operand. */
  #nextRows(operands: readonly OperandIndex[]): [OperandIndex, Gp][] {
    const a = this.#a;
    const spare = this.#frame.sparePointers();
    return operands.map((operand, index) => {
      const pointer = defined(spare[index], `${this.#program.name}: a register for the next row`);
      a.mov(pointer, this.#frame.pointer(operand));
      a.add(pointer, this.#frame.stride(operand));
      return [operand, pointer];
    });
  }

  /** Asks for the line at the columns of vector `copy`; beyond the last row that is harmless. */
  #prefetch(operand: OperandIndex, pointer: Gp, copy: number): void {
    const { elementBytes } = this.#program.operands[operand]!;
    const offset = copy * LANES * elementBytes;
    if (offset % LINE_BYTES !== 0) return;
    this.#a.prefetch(mem(pointer, offset, COLUMN, elementBytes));
  }

  /** One vector a round, under a mask of the columns that are left; fewer than 64 are. */
  #masked(body: () => void): void {
    const a = this.#a;
    a.countdown(LEFT, LANES, () => {
      a.mov(r.rcx, -1);
      a.bzhi(r.rcx, r.rcx, LEFT);
      a.kmovd(TAIL, r.rcx);
      body();
      a.add(COLUMN, LANES);
    });
  }

  #copy(
    loop: ColumnLoop,
    loopPosition: number,
    parts: readonly (readonly Vector[])[],
    place: Place,
  ): void {
    for (const value of loop.body) {
      const position = this.#liveness.position.get(value)!;
      this.#instructions.emit(value, position, place);
      this.#registers.expire(position);
    }
    loop.reductions.forEach((reduction, index) => {
      this.#accumulate(reduction, parts[index]![place.copy]!, place);
    });
    // What the reductions read dies here; values from before the loop live on to its own position.
    this.#registers.expire(loopPosition - 1);
  }

  /** register ← the per-row i32 at `operand`, clamped to [0, width]. */
  #clampedLimit(register: Gp, operand: OperandIndex): void {
    const a = this.#a;
    a.mov(r.rax, this.#frame.element(operand));
    a.movsxd(register, mem(r.rax));
    a.cmp(register, WIDTH);
    a.cmov("g", register, WIDTH);
    a.mov(r.rax, 0);
    a.cmp(register, r.rax);
    a.cmov("l", register, r.rax);
  }

  // Reductions: PARTS accumulators of LANES lanes, folded in a fixed order.

  #startReduction({ kind }: Reduction): Vector[] {
    const a = this.#a;
    if (kind === "max") a.mov(r.rax, NEGATIVE_INFINITY_BITS);
    return Array.from({ length: PARTS }, () => {
      const part = this.#registers.take();
      if (kind === "max") a.v("vpbroadcastd r32", [part, r.rax]);
      else a.v("vpxord", [part, part, part]);
      return part;
    });
  }

  #accumulate(reduction: Reduction, part: Vector, { tail }: Place): void {
    const a = this.#a;
    const mask = tail ? merging(TAIL) : null;
    const element = this.#instructions.register(reduction.a);
    if (reduction.kind === "sumOfProducts") {
      const factor = this.#instructions.register(reduction.b);
      a.v("vfmadd231ps", [part, element, factor], mask);
    } else if (reduction.kind === "sum") a.v("vaddps", [part, part, element], mask);
    // max(element, part): an element that is NaN leaves the part as it is.
    else a.v("vmaxps", [part, element, part], mask);
    this.#instructions.giveBack();
  }

  #finishReduction({ kind, value }: Reduction, parts: readonly Vector[]): void {
    const a = this.#a;
    const op = kind === "max" ? "vmaxps" : "vaddps";
    const [first, second, third, fourth] = parts as [Vector, Vector, Vector, Vector];
    a.v(op, [first, first, second]);
    a.v(op, [third, third, fourth]);
    a.v(op, [first, first, third]);
    for (const order of [SWAP_HALVES, SWAP_NEIGHBOURS]) {
      a.v("vshuff32x4", [second, first, first, order]);
      a.v(op, [first, first, second]);
    }
    for (const order of [SWAP_HALVES, SWAP_NEIGHBOURS]) {
      a.v("vpshufd", [second, first, order]);
      a.v(op, [first, first, second]);
    }
    for (const part of [second, third, fourth]) this.#registers.release(part);
    this.#registers.bind(value, first);
  }
}
