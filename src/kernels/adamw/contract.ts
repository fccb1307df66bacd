/**
 * @file One step of AdamW over a flat span, and the sum of squares that gradient clipping needs.
 *
 *     g  = gradient · gradientScale
 *     m ← m + (g − m)(1 − beta1)            v ← v·beta2 + g²(1 − beta2)
 *     p ← p·(1 − learningRate·weightDecay) − learningRate·m̂ / (√v̂ + epsilon)
 *     m̂ = m / (1 − beta1^step)              v̂ = v / (1 − beta2^step)
 *
 * Weight decay is decoupled (Loshchilov and Hutter). All operands are contiguous and of one length;
 * the gradient is left as it was. Parameters and gradients are f32 (f64 in checks). Moments are of
 * their type or, beside f32, bf16: widened, updated in f32, used unrounded for this step, and
 * rounded when stored, to nearest even or stochastically. A stochastic rounding adds 16 random bits
 * below bf16's last place and cuts off: right on average, so that updates smaller than half a place
 * are not lost. The bits follow from (seed, step, element) alone (base/counter-random.ts), the
 * lower half of a word for the first moment and the upper for the second. Spans are cut into rows
 * of 1024 elements; sums are taken within rows, then over rows in order, so that the number of
 * threads changes no bit. The four operands do not overlap.
 */
import { counterKeys } from "../../base/counter-random.ts";
import { assert } from "../../base/errors.ts";
import { ceilDiv, divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { Arena } from "../../tensor/arena.ts";
import { DTYPE_BYTES, type FloatType } from "../../tensor/dtype.ts";
import { elementCount, isContiguous, makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { assertOperand } from "../door.ts";
import { launchRows, perRow, type RowOperand } from "../launch-rows.ts";

/** Named by the moments. */
export const ADAMW_VARIANTS = ["f32", "f64", "bf16", "bf16.stochastic"] as const;
export const SUM_SQUARES_VARIANTS = ["f32", "f64"] as const;
/** Columns of the rows that a span is cut into: a power of two. */
export const SPAN_COLUMNS = 1024;

/** What moments are stored in; f64 with f64 parameters. */
export type MomentType = FloatType | "bf16";

export interface AdamwCall {
  readonly parameter: Tensor<FloatType>;
  readonly gradient: Tensor<FloatType>;
  readonly firstMoment: Tensor<MomentType>;
  readonly secondMoment: Tensor<MomentType>;
  /** Makes the rounding of bf16 moments stochastic; spans of one step have different seeds. */
  readonly roundingSeed?: number;
  /** Where a part of a span stands in it, for its rounding: a multiple of SPAN_COLUMNS; 0. */
  readonly firstElement?: number;
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
  return [tensor.byteOffset + start * DTYPE_BYTES[tensor.dtype], columns];
}

export function adamw(device: Device, call: AdamwCall): void {
  const { parameter, gradient, firstMoment, secondMoment, step } = call;
  const operands = [parameter, gradient, firstMoment, secondMoment];
  const elements = elementCount(parameter);
  for (const tensor of operands) {
    assertOperand(device, "adamw operand", tensor);
    assert(
      isContiguous(tensor) && elementCount(tensor) === elements,
      "adamw: operands are contiguous and of one length",
    );
  }
  assertDtypes(call);
  assert(step >= 1, `adamw: step (${step}) starts at 1`);
  const { roundingSeed, firstElement = 0 } = call;
  const variant = roundingSeed === undefined ? firstMoment.dtype : "bf16.stochastic";
  const secondCorrection = Math.sqrt(1 - call.beta2 ** step);
  // m̂/(√v̂ + ε) = m·(√c2/c1) / (√v + ε·√c2)
  const stepLength = (call.learningRate * secondCorrection) / (1 - call.beta1 ** step);
  for (const { start, rows, columns } of spanParts(elements)) {
    launchRows(device, `adamw/${variant}`, {
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
        ...(roundingSeed === undefined
          ? []
          : roundingScalars(roundingSeed, step, firstElement + start)),
      ],
    });
  }
}

function assertDtypes({ parameter, gradient, firstMoment, ...call }: AdamwCall): void {
  assert(gradient.dtype === parameter.dtype, "adamw: the gradient has the parameter's dtype");
  const { dtype } = firstMoment;
  assert(call.secondMoment.dtype === dtype, "adamw: both moments have one dtype");
  assert(
    dtype === parameter.dtype || (dtype === "bf16" && parameter.dtype === "f32"),
    `adamw: moments in ${dtype} of parameters in ${parameter.dtype}`,
  );
  assert(
    call.roundingSeed === undefined || dtype === "bf16",
    `adamw: moments in ${dtype} are not rounded; roundingSeed is for bf16`,
  );
}

/** firstKey, secondKey, firstRow: what the part that starts at element `start` draws from. */
function roundingScalars(seed: number, step: number, start: number): number[] {
  const { first, second } = counterKeys(seed, step);
  return [first, second, divExact(start, SPAN_COLUMNS)];
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
