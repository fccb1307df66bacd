/**
 * @file Builds the body of one WebAssembly function, instruction by instruction, under the
 * specification's names.
 *
 * A stack machine's code is written in the order it runs. The structured helpers (`loop`, `when`,
 * `countdown`) are the whole control flow that kernels need. Knows no tensors. Alignment hints are
 * always 1 byte: rows may start anywhere.
 */
import { assert } from "../../base/errors.ts";
import { signed, unsigned, vector } from "./encoding.ts";
import {
  LANE_MEMORY_OPS,
  LANE_OPS,
  type LaneMemoryOp,
  type LaneOp,
  MEMORY_OPS,
  type MemoryOp,
  SCALAR_OPS,
  type ScalarOp,
  VECTOR_OPS,
  type VectorOp,
} from "./opcodes.ts";

const VALUE_TYPES = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b } as const;
export type ValueType = keyof typeof VALUE_TYPES;
/** A parameter or local variable, by its index. */
export type Local = number;

const VECTOR_PREFIX = 0xfd;
const LOOP = 0x03;
const IF = 0x04;
const ELSE = 0x05;
const END = 0x0b;
const BR_IF = 0x0d;
const NO_RESULT = 0x40;

/** A function without results under construction. */
export class WasmFunction {
  readonly params: readonly ValueType[];
  readonly #locals: ValueType[] = [];
  readonly #bytes: number[] = [];

  constructor(params: readonly ValueType[]) {
    this.params = params;
  }

  /** A new local variable; zero until set. */
  local(type: ValueType): Local {
    this.#locals.push(type);
    return this.params.length + this.#locals.length - 1;
  }

  get(local: Local): this {
    return this.#emit(0x20, ...unsigned(local));
  }

  set(local: Local): this {
    return this.#emit(0x21, ...unsigned(local));
  }

  tee(local: Local): this {
    return this.#emit(0x22, ...unsigned(local));
  }

  i32Const(value: number): this {
    return this.#emit(0x41, ...signed(value));
  }

  /** Four 32-bit words, lowest lane first. */
  v128Const(words: readonly [number, number, number, number]): this {
    return this.#emit(VECTOR_PREFIX, 0x0c, ...new Uint8Array(Int32Array.from(words).buffer));
  }

  op(name: ScalarOp | VectorOp): this {
    if (name in SCALAR_OPS) return this.#emit(SCALAR_OPS[name as ScalarOp]);
    return this.#emit(VECTOR_PREFIX, ...unsigned(VECTOR_OPS[name as VectorOp]));
  }

  /** A load or store: the address (and the value) are on the stack. */
  memory(name: MemoryOp, offset = 0): this {
    return this.#emit(...MEMORY_OPS[name], 0, ...unsigned(offset));
  }

  laneMemory(name: LaneMemoryOp, lane: number, offset = 0): this {
    return this.#emit(...LANE_MEMORY_OPS[name], 0, ...unsigned(offset), lane);
  }

  lane(name: LaneOp, lane: number): this {
    return this.#emit(VECTOR_PREFIX, LANE_OPS[name], lane);
  }

  /** `i8x16.shuffle`: bytes 0–15 of the first operand, 16–31 of the second. */
  shuffle8(bytes: readonly number[]): this {
    assert(bytes.length === 16, `a shuffle names 16 bytes, not ${bytes.length}`);
    return this.#emit(VECTOR_PREFIX, 0x0d, ...bytes);
  }

  /** `i8x16.shuffle` by whole 32-bit lanes: 0–3 of the first operand, 4–7 of the second. */
  shuffle32(lanes: readonly [number, number, number, number]): this {
    return this.shuffle8(lanes.flatMap((lane) => [0, 1, 2, 3].map((byte) => lane * 4 + byte)));
  }

  /** `brIf(0)` at the end of the body starts it again. */
  loop(body: () => void): this {
    this.#emit(LOOP, NO_RESULT);
    body();
    return this.#emit(END);
  }

  /** Runs `body` where the i32 on the stack is not zero. */
  when(body: () => void, otherwise?: () => void): this {
    this.#emit(IF, NO_RESULT);
    body();
    if (otherwise !== undefined) {
      this.#emit(ELSE);
      otherwise();
    }
    return this.#emit(END);
  }

  brIf(depth: number): this {
    return this.#emit(BR_IF, ...unsigned(depth));
  }

  /** local ← local + constant. */
  addConst(local: Local, value: number): this {
    return this.get(local).i32Const(value).op("i32.add").set(local);
  }

  /** local ← local + other. */
  addLocal(local: Local, other: Local): this {
    return this.get(local).get(other).op("i32.add").set(local);
  }

  /** Runs `body` while count ≥ step, taking `step` from `count` (an i32 local) after each round. */
  countdown(count: Local, step: number, body: () => void): this {
    this.get(count).i32Const(step).op("i32.ge_s");
    return this.when(() => {
      this.loop(() => {
        body();
        this.get(count).i32Const(step).op("i32.sub").tee(count);
        this.i32Const(step).op("i32.ge_s").brIf(0);
      });
    });
  }

  /** The function's type, for the type section. */
  get typeBytes(): number[] {
    return [0x60, ...vector(this.params.map((type) => [VALUE_TYPES[type]])), 0];
  }

  /** Locals and code, for the code section. */
  get codeBytes(): number[] {
    const locals = vector(this.#locals.map((type) => [1, VALUE_TYPES[type]]));
    return [...unsigned(locals.length + this.#bytes.length + 1), ...locals, ...this.#bytes, END];
  }

  #emit(...bytes: number[]): this {
    for (const byte of bytes) this.#bytes.push(byte);
    return this;
  }
}
