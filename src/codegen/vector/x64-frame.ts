/**
 * @file Where a generated x86-64 row kernel keeps its integers: general registers and 64-bit locals
 * of the frame.
 *
 * Registers: the row pointers of operands that column loops read, `width` (columns of the task),
 * `column` and `left` (of the running loop), rax and rcx as scratch. Everything that changes once a
 * row or seldom stands in the frame.
 */
import { assert, defined } from "../../base/errors.ts";
import { type Gp, type Memory, mem, r } from "../x64/operands.ts";
import type { OperandIndex, RowProgram, Value } from "./program.ts";

const { rbx, rbp, rsi, rdi, rdx, r8, r9, r10, r11, r12 } = r;
const POINTERS: readonly Gp[] = [rsi, rdi, rbx, rbp, r8, r9, r10, r11, r12, rdx];

export const WIDTH: Gp = r.r15;
export const COLUMN: Gp = r.r14;
export const LEFT: Gp = r.r13;

type FixedName =
  | ("task" | "endTask" | "rows" | "columns" | "perTask")
  | ("rowsLeft" | "taskStart" | "row");
const FIXED: readonly FixedName[] = [
  ...(["task", "endTask", "rows", "columns", "perTask"] as const),
  ...(["rowsLeft", "taskStart", "row"] as const),
];

const LOCALS_PER_OPERAND = 3;
const IOTA_LOCALS = 8;

export class X64Frame {
  readonly #pointers = new Map<OperandIndex, Gp>();
  readonly #numOperands: number;
  readonly #uniforms: ReadonlyMap<Value, number>;

  constructor(program: RowProgram) {
    this.#numOperands = program.operands.length;
    this.#uniforms = new Map(program.uniforms.map((value, index) => [value, index]));
    program.operands.forEach(({ kind }, index) => {
      if (kind === "perRow") return;
      const register = POINTERS[this.#pointers.size];
      assert(
        register !== undefined,
        `${program.name}: more than ${POINTERS.length} operands need a pointer register`,
      );
      this.#pointers.set(index, register);
    });
  }

  /** Pointer registers that no operand needs. */
  sparePointers(): readonly Gp[] {
    return POINTERS.slice(this.#pointers.size);
  }

  get numLocals(): number {
    return this.#iotaStart + IOTA_LOCALS;
  }

  fixed(name: FixedName): Memory {
    return mem(r.rsp, 8 * FIXED.indexOf(name));
  }

  /** Address of the current row of an operand of any other kind. */
  pointer(operand: OperandIndex): Gp {
    return defined(this.#pointers.get(operand), `pointer register of operand ${operand}`);
  }

  /** Address of an operand's first element. */
  base(operand: OperandIndex): Memory {
    return this.#operandLocal(operand, 0);
  }

  /** Bytes from row to row, or task to task. */
  stride(operand: OperandIndex): Memory {
    return this.#operandLocal(operand, 1);
  }

  /** Address of the current row's element of a per-row operand. */
  element(operand: OperandIndex): Memory {
    return this.#operandLocal(operand, 2);
  }

  /** The 32 bits of a uniform. */
  uniform(value: Value): Memory | null {
    const index = this.#uniforms.get(value);
    return index === undefined ? null : mem(r.rsp, 8 * this.#uniformStart + 4 * index);
  }

  /** Sixteen integers 0 … 15, for `columnIndex`. */
  iota(lane = 0): Memory {
    return mem(r.rsp, 8 * this.#iotaStart + 4 * lane);
  }

  #operandLocal(operand: OperandIndex, which: number): Memory {
    return mem(r.rsp, 8 * (FIXED.length + operand * LOCALS_PER_OPERAND + which));
  }

  get #uniformStart(): number {
    return FIXED.length + this.#numOperands * LOCALS_PER_OPERAND;
  }

  get #iotaStart(): number {
    return this.#uniformStart + Math.ceil(this.#uniforms.size / 2);
  }
}
