/**
 * @file The global gradient norm, and the factor that brings it down to a limit.
 *
 *     norm = √ Σ g²  over all parameters, part by part        scale = min(1, limit ÷ norm)
 *
 * The factor is not applied here: the optimizer multiplies by it while it reads the gradients.
 */
import type { Device } from "../../device/device.ts";
import { sumSquares } from "../../kernels/adamw/contract.ts";
import { SPAN_NAMES } from "../../model/parameter-layout.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { OptimizerPart } from "../spans.ts";

/** The squares of a part's gradients, added up; not finite if any gradient is not. */
export function squaredNorm(device: Device, arena: Arena, { spans }: OptimizerPart): number {
  let total = 0;
  for (const name of SPAN_NAMES) total += sumSquares(device, { x: spans[name].gradients, arena });
  return total;
}

/** What to multiply gradients of this norm by; a limit of 0 never clips. */
export function clipScale(norm: number, limit: number): number {
  return limit > 0 && norm > limit ? limit / norm : 1;
}
