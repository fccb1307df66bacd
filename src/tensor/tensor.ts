/**
 * @file A tensor: dtype, shape and place in device memory. Plain data; no arithmetic, no ownership.
 *
 * Every tensor is a matrix of rows: the last dimension is contiguous, all leading dimensions are
 * flattened into `rows`, and consecutive rows stand `rowStride` elements apart. Slices of rows and
 * of columns are tensors again.
 */
import { assert, unreachable } from "../base/errors.ts";
import type { CpuMemory } from "../device/cpu/memory.ts";
import { DTYPE_BYTES, type DType } from "./dtype.ts";

/** A view of device memory; the values belong to whoever allocated them. */
export interface Tensor<D extends DType = DType> {
  readonly memory: CpuMemory;
  readonly dtype: D;
  readonly shape: readonly number[];
  /** Product of all dimensions but the last. */
  readonly rows: number;
  /** The last dimension. */
  readonly columns: number;
  /** Elements from one row to the next. */
  readonly rowStride: number;
  readonly byteOffset: number;
}

/** Make a tensor over existing memory, asserting that all of it lies inside. */
export function makeTensor<D extends DType>(
  memory: CpuMemory,
  dtype: D,
  shape: readonly number[],
  byteOffset: number,
  rowStride?: number,
): Tensor<D> {
  assert(shape.length >= 1, "a tensor has at least one dimension");
  if (!shape.every((dimension) => Number.isSafeInteger(dimension) && dimension >= 0)) {
    unreachable(`dimensions of [${shape.join(", ")}] must be whole numbers >= 0`);
  }
  const columns = shape[shape.length - 1]!;
  const rows = shape.slice(0, -1).reduce((product, dimension) => product * dimension, 1);
  const stride = rowStride ?? columns;
  assert(stride >= columns, `rowStride (${stride}) must be at least the columns (${columns})`);
  const elementBytes = DTYPE_BYTES[dtype];
  assert(byteOffset % elementBytes === 0, `byteOffset (${byteOffset}) must align to ${dtype}`);
  const end = byteOffset + spanElements(rows, columns, stride) * elementBytes;
  // The message is made when it is needed: decoding makes thousands of tensors a second.
  if (byteOffset < 0 || end > memory.byteLength) {
    unreachable(
      `tensor [${shape.join(", ")}] of ${dtype} at ${byteOffset} ends beyond the device's memory`,
    );
  }
  return { memory, dtype, shape, rows, columns, rowStride: stride, byteOffset };
}

function spanElements(rows: number, columns: number, rowStride: number): number {
  return rows === 0 || columns === 0 ? 0 : (rows - 1) * rowStride + columns;
}

/** Bytes from the first element to one past the last. */
export function spanBytes(tensor: Tensor): number {
  return spanElements(tensor.rows, tensor.columns, tensor.rowStride) * DTYPE_BYTES[tensor.dtype];
}

/** Number of elements. */
export function elementCount(tensor: Tensor): number {
  return tensor.rows * tensor.columns;
}

/** Rows [start, end) as a matrix. */
export function sliceRows<D extends DType>(
  tensor: Tensor<D>,
  start: number,
  end: number,
): Tensor<D> {
  assert(
    start >= 0 && start <= end && end <= tensor.rows,
    `rows [${start}, ${end}) must lie within 0..${tensor.rows}`,
  );
  const byteOffset = tensor.byteOffset + start * tensor.rowStride * DTYPE_BYTES[tensor.dtype];
  const shape = [end - start, tensor.columns];
  return { ...tensor, shape, rows: end - start, byteOffset };
}

/** Columns [start, end) as a matrix with the same row stride. */
export function sliceColumns<D extends DType>(
  tensor: Tensor<D>,
  start: number,
  end: number,
): Tensor<D> {
  assert(
    start >= 0 && start <= end && end <= tensor.columns,
    `columns [${start}, ${end}) must lie within 0..${tensor.columns}`,
  );
  const byteOffset = tensor.byteOffset + start * DTYPE_BYTES[tensor.dtype];
  return { ...tensor, shape: [tensor.rows, end - start], columns: end - start, byteOffset };
}

/** The same elements in another shape. Strided tensors keep their last dimension. */
export function reshape<D extends DType>(tensor: Tensor<D>, shape: readonly number[]): Tensor<D> {
  const columns = shape[shape.length - 1] ?? 0;
  const total = shape.reduce((product, dimension) => product * dimension, 1);
  assert(
    total === elementCount(tensor),
    `shape [${shape.join(", ")}] must hold ${elementCount(tensor)} elements`,
  );
  const contiguous = tensor.rowStride === tensor.columns || tensor.rows <= 1;
  assert(
    contiguous || columns === tensor.columns,
    `a tensor with row stride ${tensor.rowStride} keeps its last dimension (${tensor.columns})`,
  );
  return {
    ...tensor,
    shape,
    rows: shape.slice(0, -1).reduce((product, dimension) => product * dimension, 1),
    columns,
    rowStride: contiguous ? columns : tensor.rowStride,
  };
}

/** Whether rows follow each other without a gap. */
export function isContiguous(tensor: Tensor): boolean {
  return tensor.rowStride === tensor.columns || tensor.rows <= 1;
}
