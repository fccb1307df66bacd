/**
 * @file The frame of the row kernels' references: one plain function a row, called in order, with
 * f64 arithmetic.
 *
 * The frame takes the slot layout of `launchRows` apart; a reference sees operands that it reads
 * and writes by (row, column) as numbers.
 */
import { defined } from "../base/errors.ts";
import type { KernelBody, ThreadContext } from "../device/program.ts";
import type { DType } from "../tensor/dtype.ts";
import { slot } from "./kernel.ts";
import { elementsAt } from "./views.ts";

/**
 * An operand by row and column. A vector has one row; a value per row stands in column 0; a partial
 * has the task's row.
 */
export interface ReferenceOperand {
  get(row: number, column: number): number;
  set(row: number, column: number, value: number): void;
}

/** What a reference knows of the row it computes. */
export interface ReferenceRow {
  readonly row: number;
  readonly task: number;
  /** Whether it is the task's first: partials begin with it. */
  readonly isFirst: boolean;
  readonly columns: number;
  readonly scalars: Float64Array;
}

export type ReferenceRowBody = (operands: readonly ReferenceOperand[], at: ReferenceRow) => void;

const HEADER_SLOTS = 3;

/** The body that runs `body` for every row; `dtypes` are those of the operands, in order. */
export function referenceRows(
  context: ThreadContext,
  dtypes: readonly DType[],
  body: ReferenceRowBody,
): KernelBody {
  return (slots, firstTask, endTask) => {
    const rows = slot(slots, 0);
    const columns = slot(slots, 1);
    const rowsPerTask = slot(slots, 2);
    const operands = dtypes.map((dtype, index): ReferenceOperand => {
      const elements = elementsAt(context.memory, dtype, slot(slots, HEADER_SLOTS + 2 * index));
      const stride = slot(slots, HEADER_SLOTS + 2 * index + 1);
      return {
        get: (row, column) => elements.get(row * stride + column),
        set: (row, column, value) => elements.set(row * stride + column, value),
      };
    });
    const scalars = slots.subarray(HEADER_SLOTS + 2 * dtypes.length);
    for (let task = firstTask; task < endTask; task++) {
      const first = task * rowsPerTask;
      const end = Math.min(rows, first + rowsPerTask);
      for (let row = first; row < end; row++) {
        body(operands, { row, task, isFirst: row === first, columns, scalars });
      }
    }
  };
}

/** Scalar `index` of a launch. */
export function scalar(at: ReferenceRow, index: number): number {
  return defined(at.scalars[index], `scalar ${index}`);
}

/** Σ over the columns, in order. */
export function sumColumns(columns: number, term: (column: number) => number): number {
  let sum = 0;
  for (let column = 0; column < columns; column++) sum += term(column);
  return sum;
}
