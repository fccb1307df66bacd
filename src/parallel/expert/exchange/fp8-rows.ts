/**
 * @file Rows as they are dispatched: the FP8 codes of a token, then the scales of its 1×128 tiles.
 *
 *     row = D bytes of E4M3 codes, then D÷128 little-endian f32 scales: D + 4·D÷128 bytes
 */
import { assert } from "../../../base/errors.ts";
import { divExact } from "../../../base/integers.ts";
import { SCALE_BLOCK } from "../../../numerics/scales.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";

/** Codes [T, D] and scales [T, D÷128]. */
export interface Fp8Rows {
  readonly codes: Tensor<"u8">;
  readonly scales: Tensor<"f32">;
}

export function fp8RowBytes(hiddenDim: number): number {
  return hiddenDim + 4 * divExact(hiddenDim, SCALE_BLOCK);
}

/** `packed` is [T, fp8RowBytes(D)]. */
export function packFp8Rows(rows: Fp8Rows, packed: Tensor<"u8">): void {
  const { codes, scales } = rows;
  assertShapes(rows, packed);
  const from = view(codes);
  const scaleBytes = bytesOf(scales);
  const to = view(packed);
  const { columns } = codes;
  const tail = 4 * scales.columns;
  for (let row = 0; row < codes.rows; row++) {
    const start = row * packed.columns;
    to.set(from.subarray(row * columns, (row + 1) * columns), start);
    to.set(scaleBytes.subarray(row * tail, (row + 1) * tail), start + columns);
  }
}

export function unpackFp8Rows(packed: Tensor<"u8">, rows: Fp8Rows): void {
  const { codes, scales } = rows;
  assertShapes(rows, packed);
  const from = view(packed);
  const to = view(codes);
  const scaleBytes = bytesOf(scales);
  const { columns } = codes;
  const tail = 4 * scales.columns;
  for (let row = 0; row < codes.rows; row++) {
    const start = row * packed.columns;
    to.set(from.subarray(start, start + columns), row * columns);
    scaleBytes.set(from.subarray(start + columns, start + columns + tail), row * tail);
  }
}

function assertShapes({ codes, scales }: Fp8Rows, packed: Tensor): void {
  assert(scales.columns * SCALE_BLOCK === codes.columns, "a scale for every 128 codes");
  assert(packed.columns === fp8RowBytes(codes.columns), `rows of ${packed.columns} bytes`);
  assert(codes.rows === packed.rows && scales.rows === packed.rows, "as many rows in all three");
}

function bytesOf(tensor: Tensor<"f32">): Uint8Array {
  const values = view(tensor);
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
