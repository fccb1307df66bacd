/** @file Row programs in WebAssembly as steps of a larger kernel's body. */
import { defined } from "../base/errors.ts";
import type { RowProgram } from "../codegen/vector/program.ts";
import type { KernelBody, ThreadContext } from "../device/program.ts";
import type { KernelImplementation } from "./kernel.ts";
import type { RowOperand } from "./launch-rows.ts";
import { rowImplementations } from "./row-kernel.ts";

/** Runs a row program over `rows` rows of `columns` columns, as one task. */
export type RowRunner = (
  rows: number,
  columns: number,
  operands: readonly RowOperand[],
  scalars?: readonly number[],
) => void;

const SLOTS_MAX = 24;

/** The program's implementation in WebAssembly, with its refusal. */
export function wasmRows(program: () => RowProgram): KernelImplementation {
  const found = rowImplementations(program).find(({ target }) => target === "wasm");
  return defined(found, "row programs in WebAssembly");
}

/** A runner of the program, which is generated when it first runs. */
export function wasmRowRunner(program: () => RowProgram, context: ThreadContext): RowRunner {
  let body: KernelBody | undefined;
  const slots = new Float64Array(SLOTS_MAX);
  return (rows, columns, operands, scalars = []) => {
    body ??= wasmRows(program).create("", context);
    slots.set([rows, columns, rows, ...operands.flat(), ...scalars]);
    body(slots, 0, 1);
  };
}
