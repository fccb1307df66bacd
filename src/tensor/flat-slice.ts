/** @file Consecutive elements of a tensor without gaps, whatever its shape. */
import { DTYPE_BYTES, type DType } from "./dtype.ts";
import { makeTensor, type Tensor } from "./tensor.ts";

/** Elements [start, end). */
export interface ElementRange {
  readonly start: number;
  readonly end: number;
}

/** Elements of a contiguous tensor, as one row. */
export function flatSlice<D extends DType>(
  tensor: Tensor<D>,
  start: number,
  numElements: number,
): Tensor<D> {
  const offset = tensor.byteOffset + start * DTYPE_BYTES[tensor.dtype];
  return makeTensor(tensor.memory, tensor.dtype, [1, numElements], offset);
}
