/**
 * @file What a stored tensor is on this floor: a name, a dtype by its safetensors name, a shape
 * (outermost dimension first) and bytes, row-major and little-endian.
 */

/** Bytes of one element, by the dtype's name in safetensors. */
export const ELEMENT_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

export type StoredDtype = keyof typeof ELEMENT_BYTES;

export interface TensorInfo {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
}

/** A tensor to write; its bytes are asked for when their turn comes, and not kept. */
export interface TensorSource extends TensorInfo {
  readonly data: () => Uint8Array;
}

/** Tensors to read: what there is, and the bytes of those asked for. */
export interface TensorReader extends Disposable {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The path of the file that a tensor is in. */
  fileOf(name: string): string;
  /** A copy of a tensor's bytes. */
  read(name: string): Uint8Array<ArrayBuffer>;
  /** Fill `target`, which must be exactly as long as the tensor. */
  readInto(name: string, target: Uint8Array): void;
}

/** Bytes of a tensor, or undefined if the count, even without its zeros, is no safe integer. */
export function tensorBytes(info: Omit<TensorInfo, "name">): number | undefined {
  let bytes: number = ELEMENT_BYTES[info.dtype];
  let isEmpty = false;
  for (const dimension of info.shape) {
    if (dimension === 0) isEmpty = true;
    else bytes *= dimension;
    // Checked at each step and without the zeros: an absurd shape must not pass for an empty one.
    if (!Number.isSafeInteger(bytes)) return undefined;
  }
  return isEmpty ? 0 : bytes;
}
