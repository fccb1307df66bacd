/**
 * @file Hands out the 32 vector registers of AVX-512 to the values of a row program.
 *
 * Nothing is ever spilled: uniforms that find no register are read from the stack frame as
 * broadcast operands, and a program whose other values do not fit is refused at generation.
 */
import { assert } from "../../base/errors.ts";
import { type Vector, zmm } from "../x64/operands.ts";
import type { Liveness } from "./liveness.ts";
import type { Value } from "./program.ts";

const NUM_REGISTERS = 32;

/** Which register holds which value at this point of the code. */
export class VectorRegisters {
  readonly #name: string;
  readonly #liveness: Liveness;
  readonly #free: number[] = Array.from({ length: NUM_REGISTERS }, (_, index) => index);
  readonly #held = new Map<Value, number>();
  #peak = 0;

  constructor(name: string, liveness: Liveness) {
    this.#name = name;
    this.#liveness = liveness;
  }

  /** The most registers that were in use at once. */
  get peak(): number {
    return this.#peak;
  }

  static get count(): number {
    return NUM_REGISTERS;
  }

  /** A register without a name; give it back with `release`. */
  take(): Vector {
    const index = this.#free.shift();
    assert(
      index !== undefined,
      `${this.#name}: more than ${NUM_REGISTERS} values are live at once; split the loop`,
    );
    this.#peak = Math.max(this.#peak, NUM_REGISTERS - this.#free.length);
    return zmm(index);
  }

  release(register: Vector): void {
    this.#free.unshift(register.index);
  }

  /** `value` lives in `register` from now on. */
  bind(value: Value, register: Vector): void {
    this.#held.set(value, register.index);
  }

  /** The register of a value, if it has one. */
  find(value: Value): Vector | null {
    const index = this.#held.get(value);
    return index === undefined ? null : zmm(index);
  }

  /** Whether nobody needs `value` after `position`. */
  diesAt(value: Value, position: number): boolean {
    return this.#held.has(value) && (this.#liveness.lastUse.get(value) ?? Infinity) <= position;
  }

  /** Takes the register from a dying value without freeing it. */
  takeOver(value: Value): Vector {
    const register = this.find(value);
    assert(register !== null, `${this.#name}: value ${value} has no register to take over`);
    this.#held.delete(value);
    return register;
  }

  /** Frees the registers of values that nobody needs after `position`. */
  expire(position: number): void {
    for (const [value, index] of this.#held) {
      const last = this.#liveness.lastUse.get(value) ?? this.#liveness.position.get(value);
      if (last === undefined || last > position) continue;
      this.#held.delete(value);
      this.#free.unshift(index);
    }
  }
}
