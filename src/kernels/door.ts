/** @file What every kernel asserts at its door, once a call, before any unchecked code runs. */
import { assert, unreachable } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { DTYPE_BYTES, type DType } from "../tensor/dtype.ts";
import { spanBytes, type Tensor } from "../tensor/tensor.ts";
import { view, viewSpan } from "../tensor/view.ts";

/** The operand lies in this device's memory, all `count` places of it, `stride` elements apart. */
export function assertOperand(
  device: Device,
  name: string,
  tensor: Tensor,
  count = 1,
  stride = 0,
): void {
  assert(tensor.memory === device.memory, `${name} must lie in this device's memory`);
  assert(stride >= 0, `${name}: batch stride (${stride}) must be >= 0`);
  const end =
    tensor.byteOffset +
    spanBytes(tensor) +
    Math.max(0, count - 1) * stride * DTYPE_BYTES[tensor.dtype];
  assert(
    tensor.byteOffset >= 0 && end <= device.memory.byteLength,
    `${name} ends at byte ${end}, beyond the device's ${device.memory.byteLength}`,
  );
}

/** The operand has this dtype and shape (as rows × columns). */
export function assertMatrix<D extends DType>(
  device: Device,
  name: string,
  tensor: Tensor,
  dtypes: readonly D[],
  rows: number,
  columns: number,
): asserts tensor is Tensor<D> {
  assert(
    dtypes.includes(tensor.dtype as D),
    `${name} is ${tensor.dtype}; allowed: ${dtypes.join(", ")}`,
  );
  assert(
    tensor.rows === rows && tensor.columns === columns,
    `${name} is ${tensor.rows}×${tensor.columns}, not ${rows}×${columns}`,
  );
  assertOperand(device, name, tensor);
}

/** One value per row: [1, n] or [n, 1], contiguous values of one of these dtypes. */
export function assertPerRow(
  device: Device,
  name: string,
  tensor: Tensor,
  dtypes: readonly DType[],
  rows: number,
): void {
  assert(
    dtypes.includes(tensor.dtype),
    `${name} is ${tensor.dtype}; allowed: ${dtypes.join(", ")}`,
  );
  const fits =
    (tensor.rows === 1 && tensor.columns === rows) ||
    (tensor.columns === 1 && tensor.rows === rows);
  assert(fits, `${name} is ${tensor.rows}×${tensor.columns}, not one value for ${rows} rows`);
  assertOperand(device, name, tensor);
}

/**
 * Row indexes come from data: they are checked before unchecked code follows them. `least` is 0, or
 * −1 for "none"; where `end` is 0 there is nothing to point at, and no index but "none" is allowed.
 */
export function assertIndexes(
  name: string,
  index: Tensor<"i32">,
  least: number,
  end: number,
): void {
  if (index.rows === 0 || index.columns === 0) return;
  const values = viewSpan(index);
  // Integers from the start: this loop runs over every row of every gather.
  let lowest = values[0]!;
  let highest = lowest;
  // Row by row: what stands between strided rows is not an index.
  for (let first = 0; first < values.length; first += index.rowStride) {
    for (let at = first; at < first + index.columns; at++) {
      const value = values[at]!;
      if (value < lowest) lowest = value;
      if (value > highest) highest = value;
    }
  }
  assert(
    lowest >= least && highest < end,
    `${name}: indexes ${lowest}..${highest} must lie in ${least}..${end - 1}`,
  );
}

/**
 * Offsets of groups come from data (the gate's choices): they start at 0, do not fall, and end
 * within the rows.
 */
export function assertOffsets(name: string, offsets: Tensor<"i32">, rows: number): void {
  const values = view(offsets);
  assert(values[0] === 0, `${name} start at ${values[0]}, not 0`);
  for (let group = 1; group < values.length; group++) {
    if (values[group]! < values[group - 1]!) unreachable(`${name} fall at group ${group - 1}`);
  }
  const total = values[values.length - 1]!;
  assert(total <= rows, `${name} end at ${total}, beyond the ${rows} rows`);
}
