/**
 * @file Typed-array views of tensors, for reading and writing from TypeScript.
 *
 * A view is made at the point of use and not kept: memory that grows leaves old views behind.
 */
import { assert } from "../base/errors.ts";
import type { DType } from "./dtype.ts";
import { DTYPE_BYTES } from "./dtype.ts";
import { isContiguous, spanBytes, type Tensor } from "./tensor.ts";

interface ViewOf {
  readonly f32: Float32Array<SharedArrayBuffer>;
  readonly f64: Float64Array<SharedArrayBuffer>;
  readonly bf16: Uint16Array<SharedArrayBuffer>;
  readonly e4m3: Uint8Array<SharedArrayBuffer>;
  readonly e5m2: Uint8Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly u8: Uint8Array<SharedArrayBuffer>;
}

/** The span of the tensor, gaps between strided rows included; bf16 and FP8 as codes. */
export function viewSpan<D extends DType>(tensor: Tensor<D>): ViewOf[D] {
  const length = spanBytes(tensor) / DTYPE_BYTES[tensor.dtype];
  const buffer = tensor.memory.u8.buffer;
  const makers: { [K in DType]: () => ViewOf[K] } = {
    f32: () => new Float32Array(buffer, tensor.byteOffset, length),
    f64: () => new Float64Array(buffer, tensor.byteOffset, length),
    bf16: () => new Uint16Array(buffer, tensor.byteOffset, length),
    e4m3: () => new Uint8Array(buffer, tensor.byteOffset, length),
    e5m2: () => new Uint8Array(buffer, tensor.byteOffset, length),
    i32: () => new Int32Array(buffer, tensor.byteOffset, length),
    u8: () => new Uint8Array(buffer, tensor.byteOffset, length),
  };
  return makers[tensor.dtype]() as ViewOf[D];
}

/** The elements of a contiguous tensor. */
export function view<D extends DType>(tensor: Tensor<D>): ViewOf[D] {
  assert(
    isContiguous(tensor),
    `a view needs contiguous rows; this row stride is ${tensor.rowStride}`,
  );
  return viewSpan(tensor);
}

/** Write `values` into a contiguous tensor of the same element count. */
export function fillFrom(tensor: Tensor, values: ArrayLike<number>): void {
  const target = view(tensor);
  assert(
    target.length === values.length,
    `the tensor holds ${target.length} elements, not ${values.length}`,
  );
  target.set(values);
}
