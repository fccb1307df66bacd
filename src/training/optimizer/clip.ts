/**
 * @file The global gradient norm, and the factor that brings it down to a limit.
 *
 *     norm = √ Σ g²  over all parameters        scale = min(1, limit ÷ norm)
 *
 * The factor is not applied here: the optimizer multiplies by it while it reads the gradients.
 */
import type { Device } from "../../device/device.ts";
import { sumSquares } from "../../kernels/adamw/contract.ts";
import type { ParameterSet } from "../../model/parameters.ts";
import type { Arena } from "../../tensor/arena.ts";
import { SPAN_NAMES } from "../spans.ts";

/** The Euclidean norm of all gradients together; not finite if any gradient is not. */
export function gradientNorm(device: Device, arena: Arena, parameters: ParameterSet): number {
  let total = 0;
  for (const span of SPAN_NAMES) {
    total += sumSquares(device, { x: parameters[span].gradients, arena });
  }
  return Math.sqrt(total);
}

/** What to multiply gradients of this norm by; a limit of 0 never clips. */
export function clipScale(norm: number, limit: number): number {
  return limit > 0 && norm > limit ? limit / norm : 1;
}
