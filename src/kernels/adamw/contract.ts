/**
 * @file One step of AdamW over a flat span, and the sum of squares that gradient clipping needs.
 *
 *     g  = gradient · gradientScale
 *     m ← m + (g − m)(1 − beta1)            v ← v·beta2 + g²(1 − beta2)
 *     p ← p·(1 − learningRate·weightDecay) − learningRate·m̂ / (√v̂ + epsilon)
 *     m̂ = m / (1 − beta1^step)              v̂ = v / (1 − beta2^step)
 *
 * Weight decay is decoupled (Loshchilov and Hutter). All operands are f32 (f64 in checks),
 * contiguous and of one length; the gradient is left as it was. Spans are cut into rows of 1024
 * elements; sums are taken within rows, then over rows in order, so that the number of threads
 * changes no bit. The four operands do not overlap.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { elementCount, isContiguous, makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { assertOperand } from "../door.ts";
import { launchRows, perRow, type RowOperand } from "../launch-rows.ts";

export const ADAMW_VARIANTS = ["f32", "f64"] as const;
export const SUM_SQUARES_VARIANTS = ["f32", "f64"] as const;
const SPAN_COLUMNS = 1024;

export interface AdamwCall {
  readonly parameter: Tensor<FloatType>;
  readonly gradient: Tensor<FloatType>;
  readonly firstMoment: Tensor<FloatType>;
  readonly secondMoment: Tensor<FloatType>;
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** 1 for the first step. */
  readonly step: number;
  /** Multiplies the gradient: clipping. */
  readonly gradientScale: number;
}

/**
 * A flat span as rows of SPAN_COLUMNS and one shorter row, as (offset in elements, rows, columns).
 */
function spanParts(elements: number): readonly { start: number; rows: number; columns: number }[] {
  const rows = Math.floor(elements / SPAN_COLUMNS);
  const whole = rows * SPAN_COLUMNS;
  return [
    { start: 0, rows, columns: SPAN_COLUMNS },
    { start: whole, rows: elements > whole ? 1 : 0, columns: elements - whole },
  ].filter((part) => part.rows > 0);
}

function part(tensor: Tensor, start: number, columns: number): RowOperand {
  return [tensor.byteOffset + start * (tensor.dtype === "f64" ? 8 : 4), columns];
}

export function adamw(device: Device, call: AdamwCall): void {
  const { parameter, gradient, firstMoment, secondMoment, step } = call;
  const operands = [parameter, gradient, firstMoment, secondMoment];
  const elements = elementCount(parameter);
  for (const tensor of operands) {
    assertOperand(device, "adamw operand", tensor);
    assert(
      isContiguous(tensor) && elementCount(tensor) === elements && tensor.dtype === parameter.dtype,
      "adamw: operands are contiguous, of one length and one dtype",
    );
  }
  assert(step >= 1, `adamw: step (${step}) starts at 1`);
  const secondCorrection = Math.sqrt(1 - call.beta2 ** step);
  // m̂/(√v̂ + ε) = m·(√c2/c1) / (√v + ε·√c2)
  const stepLength = (call.learningRate * secondCorrection) / (1 - call.beta1 ** step);
  for (const { start, rows, columns } of spanParts(elements)) {
    launchRows(device, `adamw/${parameter.dtype}`, {
      rows,
      columns,
      operands: operands.map((tensor) => part(tensor, start, columns)),
      scalars: [
        call.gradientScale,
        1 - call.beta1,
        call.beta2,
        1 - call.beta2,
        stepLength,
        call.epsilon * secondCorrection,
        1 - call.learningRate * call.weightDecay,
      ],
    });
  }
}

export interface SumSquaresCall {
  readonly x: Tensor<FloatType>;
  /** For the rows' sums; released before return. */
  readonly arena: Arena;
}

/** Σ x² of a contiguous tensor; the rows' sums are added in f64. */
export function sumSquares(device: Device, { x, arena }: SumSquaresCall): number {
  assert(isContiguous(x), "sumSquares: x is contiguous");
  assertOperand(device, "sumSquares x", x);
  const elements = elementCount(x);
  using _mark = arena.mark();
  const sums = arena.allocate(x.dtype, [1, Math.max(1, ceilDiv(elements, SPAN_COLUMNS))]);
  let firstRow = 0;
  let total = 0;
  for (const { start, rows, columns } of spanParts(elements)) {
    const bytes = x.dtype === "f64" ? 8 : 4;
    const out = makeTensor(x.memory, x.dtype, [1, rows], sums.byteOffset + firstRow * bytes);
    launchRows(device, `sumSquares/${x.dtype}`, {
      rows,
      columns,
      operands: [part(x, start, columns), perRow(out)],
    });
    for (const value of view(out)) total += value;
    firstRow += rows;
  }
  return total;
}
