/**
 * @file How far two computations of one thing may lie apart: a table and its measures.
 *
 *   difference     1 − 2⟨x, y⟩ / (⟨x, x⟩ + ⟨y, y⟩): 0 for equal, about ε²/2 for a relative error
 *                  ε, 1 for unrelated, 2 for opposite data. It judges the whole only.
 *   scaledError    max |x − y| / max |y|: the worst element against the largest expected one.
 *
 * The table's rows are kinds of operation; its columns the coarsest dtype among an operation's
 * data, except that the results of "matmul" are float32 (judge a product with rounded results as
 * "elementwise"). Both measures must hold. Loosen a number only with a note in the log.
 *
 * Reasons: float32 sums of K terms in any order err by about 2^-24·√K of the largest result;
 * bfloat16 results are rounded by at most 2^-8 of themselves, and FP8 (E4M3) ones by 2^-4.
 */
import { assert } from "../base/errors.ts";

/**
 * Both measures of a comparison must be at or below these; 0 and 0 demand equality (NaN equals NaN,
 * 0 equals -0).
 */
export interface Tolerance {
  readonly difference: number;
  readonly scaledError: number;
}

export type OperationKind =
  | ("elementwise" | "row" | "matmul" | "attention")
  | ("decoding" | "storage");
export type ToleranceDtype = "f32" | "bf16" | "fp8_e4m3";

/** 1 − 2⟨x,y⟩/(⟨x,x⟩+⟨y,y⟩) of two vectors that differ relatively by ε is ε²/2. */
function tolerance(error: number): Tolerance {
  return { scaledError: error, difference: Math.max(error ** 2 / 2, 1e-15) };
}

const EXACT: Tolerance = { difference: 0, scaledError: 0 };
const BF16_ROUNDING = 2 ** -8;
const FP8_ROUNDING = 2 ** -4;

/**
 * `length` is the number of terms summed for one result: K of a product, the row's length, the keys
 * attended to, the layers passed.
 */
const TABLE: Record<OperationKind, Record<ToleranceDtype, (length: number) => Tolerance>> = {
  // exp, silu and the like by polynomials: a few units in the last place.
  elementwise: {
    f32: () => tolerance(2 ** -20),
    bf16: () => tolerance(2 * BF16_ROUNDING),
    fp8_e4m3: () => tolerance(2 * FP8_ROUNDING),
  },
  // Norms, softmax, cross entropy: elementwise work around one sum.
  row: {
    f32: (length) => tolerance(2 ** -20 + 2 ** -23 * Math.sqrt(length)),
    bf16: () => tolerance(2 * BF16_ROUNDING),
    fp8_e4m3: () => tolerance(2 * FP8_ROUNDING),
  },
  // Float32 accumulators; bfloat16 and FP8 operands are exact, so results
  // differ by the order of the sum.
  matmul: {
    f32: (length) => tolerance(2 ** -22 * (1 + Math.sqrt(length))),
    bf16: (length) => tolerance(2 ** -22 * (1 + Math.sqrt(length))),
    fp8_e4m3: (length) => tolerance(2 ** -22 * (1 + Math.sqrt(length))),
  },
  // Two products with a softmax between them; with bfloat16 the probabilities are
  // rounded before the second.
  attention: {
    f32: (length) => tolerance(2 ** -19 + 2 ** -22 * Math.sqrt(length)),
    bf16: () => tolerance(2 * BF16_ROUNDING),
    fp8_e4m3: () => tolerance(2 * FP8_ROUNDING),
  },
  // Log-probabilities of tokens: decoding over the latent cache against the training forward, which
  // attends to expanded keys in another order. The errors of `length` layers add up; "bf16" is
  // what attention's own products are rounded to, on the training side alone.
  decoding: {
    f32: (layers) => tolerance(layers * 2 ** -18),
    bf16: (layers) => tolerance(layers * 2 * BF16_ROUNDING),
    fp8_e4m3: (layers) => tolerance(layers * 2 * FP8_ROUNDING),
  },
  // Writing and reading back: exact for formats that hold the values, one rounding
  // for FP8 with scales.
  storage: {
    f32: () => EXACT,
    bf16: () => EXACT,
    fp8_e4m3: () => tolerance(FP8_ROUNDING),
  },
};

/**
 * What two computations of an operation may differ by; `length` counts the terms summed for one
 * result.
 */
export function toleranceFor(
  kind: OperationKind,
  dtype: ToleranceDtype,
  length: number = 1,
): Tolerance {
  assert(length >= 0, `length (${length}) must be >= 0`);
  return TABLE[kind][dtype](length);
}

/**
 * 1 − 2⟨x, y⟩ / (⟨x, x⟩ + ⟨y, y⟩), in float64; 0 for two zero vectors, NaN if a value is not
 * finite.
 */
export function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assertSameLength(actual, expected);
  let gap = 0;
  let squares = 0;
  for (let i = 0; i < expected.length; i++) {
    const x = actual[i]!;
    const y = expected[i]!;
    // The same quantity as ⟨x−y, x−y⟩ / (⟨x,x⟩ + ⟨y,y⟩), which does not cancel
    // when x is close to y.
    gap += (x - y) * (x - y);
    squares += x * x + y * y;
  }
  return squares === 0 ? 0 : gap / squares;
}

/** max |x − y| / max |y|; Infinity if only y is all zero, NaN if a value is not finite. */
export function scaledError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assertSameLength(actual, expected);
  let gap = 0;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    gap = Math.max(gap, Math.abs(actual[i]! - expected[i]!));
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return gap === 0 ? 0 : gap / largest;
}

/** max |x − y| / |y| over the elements with |y| ≥ `magnitudeMin`; NaN if a value is not finite. */
export function maxRelativeError(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  magnitudeMin: number = Number.MIN_VALUE,
): number {
  assertSameLength(actual, expected);
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const magnitude = Math.abs(expected[i]!);
    if (magnitude < magnitudeMin) continue;
    worst = Math.max(worst, Math.abs(actual[i]! - expected[i]!) / magnitude);
  }
  return worst;
}

function assertSameLength(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  assert(
    actual.length === expected.length,
    `compared arrays have ${actual.length} and ${expected.length} elements`,
  );
}

/**
 * What is wrong with `actual`, in a sentence with the worst element and its bits, or undefined if
 * it is within the tolerance. NaN must meet NaN and an infinity the same infinity; they count no
 * further.
 */
export function mismatch(
  actual: Float32Array,
  expected: Float32Array,
  allowed: Tolerance,
): string | undefined {
  assertSameLength(actual, expected);
  let gap = 0;
  let squares = 0;
  let largest = 0;
  let worst = 0;
  let worstIndex = -1;
  for (let i = 0; i < expected.length; i++) {
    const x = actual[i]!;
    const y = expected[i]!;
    if (!Number.isFinite(x) || !Number.isFinite(y)) {
      if (!Object.is(x, y))
        return `${describeElement(actual, expected, i)}: not both, or not alike`;
      continue;
    }
    const distance = Math.abs(x - y);
    gap += distance * distance;
    squares += x * x + y * y;
    largest = Math.max(largest, Math.abs(y));
    if (distance > worst) {
      worst = distance;
      worstIndex = i;
    }
  }
  if (worstIndex < 0) return undefined;
  const measuredDifference = gap / squares;
  const measuredError = worst / largest;
  if (measuredDifference <= allowed.difference && measuredError <= allowed.scaledError) {
    return undefined;
  }
  return (
    `${describeElement(actual, expected, worstIndex)}; ` +
    `scaled error ${short(measuredError)} (allowed ${short(allowed.scaledError)}), ` +
    `difference ${short(measuredDifference)} (allowed ${short(allowed.difference)})`
  );
}

function describeElement(actual: Float32Array, expected: Float32Array, index: number): string {
  const x = actual[index]!;
  const y = expected[index]!;
  return `[${index}] is ${x} (${bitsOf(x)}), expected ${y} (${bitsOf(y)})`;
}

function short(value: number): string {
  return value.toExponential(2);
}

function bitsOf(value: number): string {
  const word = new Uint32Array(new Float32Array([value]).buffer)[0]!;
  return `0x${word.toString(16).padStart(8, "0")}`;
}
