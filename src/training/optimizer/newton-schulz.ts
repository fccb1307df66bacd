/**
 * @file Newton–Schulz orthogonalisation: U Vᵀ (nearly) from X = U Σ Vᵀ, by matrix products alone,
 * for a batch of matrices of one shape.
 *
 *     A = X Xᵀ        X ← (aI + bA + cA²) X
 *     five times; from the right, with Xᵀ X, if X is tall
 *
 *   (a, b, c) = (3.4445, −4.7750, 2.0315): singular values end between about 0.7 and 1.2, not at 1
 *   exactly.
 *
 * Operands of the products are rounded to bf16, as published: the result is approximate anyway. The
 * first X must have no singular value above 1; it is X/‖X‖_F. The trace of the first A is
 * ‖X‖_F², so the division is folded into the first polynomial and costs no pass over X. A matrix of
 * zeros stays one.
 *
 * Source: K. Jordan et al., Muon (2024), for the coefficients.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { matmul } from "../../kernels/matmul/contract.ts";
import type { Arena } from "../../tensor/arena.ts";
import { isContiguous, makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";

const A = 3.4445;
const B = -4.775;
const C = 2.0315;
const ITERATIONS = 5;

export interface OrthogonalizeCall {
  /**
   * [count · rows, columns] f32, contiguous: the matrices one below the other. Overwritten with the
   * result.
   */
  readonly x: Tensor<"f32">;
  readonly count: number;
  /** For products; released before return. */
  readonly arena: Arena;
}

/** Replace each matrix by its orthogonal factor, nearly. */
export function orthogonalize(device: Device, { x, count, arena }: OrthogonalizeCall): void {
  assert(isContiguous(x), "orthogonalize: x is contiguous");
  assert(count >= 1 && x.rows % count === 0, `orthogonalize: ${count} matrices in ${x.rows} rows`);
  const rows = x.rows / count;
  const columns = x.columns;
  if (rows === 0 || columns === 0) return;
  const isTall = rows > columns;
  const side = Math.min(rows, columns);
  using _mark = arena.mark();
  const rounded = arena.allocate("bf16", [x.rows, columns]);
  const gram = arena.allocate("f32", [count * side, side]);
  const square = arena.allocate("f32", [count * side, side]);
  const polynomial = arena.allocate("bf16", [count * side, side]);
  const [area, sideArea] = [rows * columns, side * side];
  const strides = (aStride: number, bStride: number, outStride: number) => ({
    batch: { count, aStride, bStride, outStride },
  });
  const [a, p] = [first(rounded, rows), first(polynomial, side)];
  for (let iteration = 0; iteration < ITERATIONS; iteration++) {
    castRows(device, { x, out: rounded });
    matmul(device, {
      transposition: isTall ? "tn" : "nt",
      a,
      b: a,
      out: first(gram, side),
      ...strides(area, area, sideArea),
    });
    castRows(device, { x: gram, out: polynomial });
    matmul(device, {
      transposition: "nn",
      a: p,
      b: p,
      out: first(square, side),
      ...strides(sideArea, sideArea, sideArea),
    });
    for (let index = 0; index < count; index++) {
      formPolynomial(view(gram), view(square), index * sideArea, side, iteration === 0);
    }
    castRows(device, { x: gram, out: polynomial });
    matmul(device, {
      transposition: "nn",
      ...(isTall ? { a, b: p } : { a: p, b: a }),
      out: first(x, rows),
      ...(isTall ? strides(area, sideArea, area) : strides(sideArea, area, area)),
    });
  }
}

/** The first matrix of a batch. */
function first<D extends "f32" | "bf16">(tensor: Tensor<D>, rows: number): Tensor<D> {
  return makeTensor(tensor.memory, tensor.dtype, [rows, tensor.columns], tensor.byteOffset);
}

/**
 * gram ← s·(aI + b·s²·gram + c·s⁴·square), where s = 1/√trace(gram) at the first iteration, and 1
 * later.
 */
function formPolynomial(
  gram: Float32Array,
  square: Float32Array,
  start: number,
  side: number,
  normalizes: boolean,
): void {
  let trace = 0;
  for (let row = 0; row < side; row++) trace += gram[start + row * side + row]!;
  const scale = normalizes ? (trace > 0 ? 1 / Math.sqrt(trace) : 0) : 1;
  const linear = B * scale ** 3;
  const quadratic = C * scale ** 5;
  const end = start + side * side;
  for (let at = start; at < end; at++) gram[at] = linear * gram[at]! + quadratic * square[at]!;
  for (let row = 0; row < side; row++) {
    const at = start + row * side + row;
    gram[at] = gram[at]! + A * scale;
  }
}
