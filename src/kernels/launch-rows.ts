/**
 * @file Launching a row kernel: the slot layout that every one of them shares.
 *
 *     [rows, columns, rowsPerTask, (byteOffset, stride) for each operand in order of declaration,
 *     then the scalars]
 *
 * A matrix operand's stride is its row stride in elements, a vector shared by all rows has 0, one
 * value per row has the elements between values, and a partial sum has the elements between the
 * tasks' vectors.
 */
import { ceilDiv } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Byte offset and stride of one operand. */
export type RowOperand = readonly [byteOffset: number, stride: number];

/** Elements a task should have: some 20 µs of work, so that sharing it pays. */
const TASK_ELEMENTS = 16384;

export interface RowLaunch {
  readonly rows: number;
  readonly columns: number;
  /** Fixed where partial sums make it part of the result; else chosen by size. */
  readonly rowsPerTask?: number;
  readonly operands: readonly RowOperand[];
  readonly scalars?: readonly number[];
}

/** A matrix, row by row. */
export function matrix(tensor: Tensor): RowOperand {
  return [tensor.byteOffset, tensor.rowStride];
}

/** A vector shared by all rows. */
export function vector(tensor: Tensor): RowOperand {
  return [tensor.byteOffset, 0];
}

/** One value per row: a [1, n] or an [n, 1] tensor. */
export function perRow(tensor: Tensor): RowOperand {
  return [tensor.byteOffset, tensor.columns === 1 ? tensor.rowStride : 1];
}

/** One value per row, taken from column `column` of a matrix. */
export function columnOf(tensor: Tensor, column: number): RowOperand {
  return [tensor.byteOffset + 4 * column, tensor.rowStride];
}

export function launchRows(device: Device, key: string, launch: RowLaunch): void {
  const { rows, columns } = launch;
  if (rows === 0) return;
  const rowsPerTask = launch.rowsPerTask ?? ceilDiv(TASK_ELEMENTS, Math.max(1, columns));
  const slots = [rows, columns, rowsPerTask];
  for (const [byteOffset, stride] of launch.operands) slots.push(byteOffset, stride);
  slots.push(...(launch.scalars ?? []));
  device.launch(key, slots, ceilDiv(rows, rowsPerTask));
}
