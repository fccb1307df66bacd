/**
 * @file The global gradient norm, and the factor that brings it down to a limit.
 *
 *     norm = √ Σ g²  over all parameters        scale = min(1, limit ÷ norm)
 *
 * Squares are summed parameter by parameter, so that the norm does not depend on which rank moves
 * which.
 * The factor is not applied here: the optimizer multiplies by it while it reads the gradients.
 */
import { defined } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { sumSquares } from "../../kernels/adamw/contract.ts";
import { spanNameOf } from "../../model/parameter-layout.ts";
import type { Arena } from "../../tensor/arena.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import type { OptimizerPart } from "../spans.ts";

/**
 * The squares of a part's gradients, added up for each of `names`: of the pieces that lie in the
 * part. Not finite where a gradient is not.
 */
export function squaresOf(
  device: Device,
  arena: Arena,
  { spans, pieces }: Pick<OptimizerPart, "spans" | "pieces">,
  names: readonly string[],
): Float64Array {
  const places = new Map(names.map((name, index) => [name, index]));
  const squares = new Float64Array(names.length);
  for (const { parameter, place, numElements } of pieces) {
    const { gradients } = spans[spanNameOf(parameter)];
    const x = flatSlice(gradients, place, numElements);
    const index = defined(places.get(parameter.name), `the place of ${parameter.name}`);
    squares[index]! += sumSquares(device, { x, arena });
  }
  return squares;
}

/** The norm, from the squares of all parameters in their order. */
export function normOf(squares: Float64Array): number {
  return Math.sqrt(squares.reduce((sum, square) => sum + square, 0));
}

/** What to multiply gradients of this norm by; a limit of 0 never clips. */
export function clipScale(norm: number, limit: number): number {
  return limit > 0 && norm > limit ? limit / norm : 1;
}
