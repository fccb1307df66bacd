/**
 * @file What the composed attentions share: blocks of queries, and products between places.
 *
 * Masked probabilities are exact zeros, and 0 · NaN is NaN: values that are not finite would leak
 * into earlier rows of their block. The block's last row sees all of them, so it tells whether
 * there are any; such a block's rows are multiplied one by one, each by the values it sees. That
 * changes no bit of any other row: zeros appended along the depth of a product never do.
 */
import type { BlockMultiplier } from "../matmul/block-multiplier.ts";
import type { Place } from "./heads.ts";

/** One block of queries of one head: rows [start, end) against keys [0, end). */
export interface QueryBlock {
  readonly start: number;
  readonly rows: number;
  readonly keys: number;
}

/** Row `row` of a place whose elements have `bytes` bytes. */
export function rowOf(place: Place, row: number, bytes: number): Place {
  const offset = place.offset + row * place.rowStride * bytes;
  return { offset, rowStride: place.rowStride };
}

/** Rows, columns and depth of a product, and whether it adds to what is there. */
export interface ProductSize {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly accumulate?: boolean;
}

export function multiply(
  product: BlockMultiplier,
  a: Place,
  b: Place,
  out: Place,
  { m, n, k, accumulate = false }: ProductSize,
): void {
  product(
    a.offset,
    a.rowStride,
    b.offset,
    b.rowStride,
    out.offset,
    out.rowStride,
    m,
    n,
    k,
    accumulate,
  );
}

/** What `mixValues` multiplies; `bytes` is the size of an element of weights and values. */
export interface Mixture {
  readonly nn: BlockMultiplier;
  readonly floats: Float32Array;
  readonly probabilities: Place;
  readonly values: Place;
  readonly valueColumns: number;
  /** The block's rows, f32. */
  readonly out: Place;
  readonly bytes: number;
}

/** out = probabilities · values of one block, no row touched by values that it does not see. */
export function mixValues(block: QueryBlock, mixture: Mixture): void {
  const { nn, floats, probabilities, values, valueColumns: n, out, bytes } = mixture;
  const { start, rows, keys } = block;
  multiply(nn, probabilities, values, out, { m: rows, n, k: keys });
  if (isFiniteRow(floats, rowOf(out, rows - 1, 4), n)) return;
  for (let row = 0; row < rows; row++) {
    const weights = rowOf(probabilities, row, bytes);
    multiply(nn, weights, values, rowOf(out, row, 4), { m: 1, n, k: start + row + 1 });
  }
}

function isFiniteRow(floats: Float32Array, row: Place, columns: number): boolean {
  const first = row.offset / 4;
  for (let at = first; at < first + columns; at++) {
    if (!Number.isFinite(floats[at]!)) return false;
  }
  return true;
}
