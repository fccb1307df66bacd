/**
 * @file Integer arithmetic with the rounding in the name; a bare `/` on integers is banned
 * elsewhere.
 */
import { assert } from "./errors.ts";

/** ⌈a ÷ b⌉ for a ≥ 0, b > 0. */
export function ceilDiv(a: number, b: number): number {
  return Math.floor((a + b - 1) / b);
}

/** ⌊a ÷ b⌋. */
export function floorDiv(a: number, b: number): number {
  return Math.floor(a / b);
}

/** a ÷ b, asserting that nothing remains. */
export function divExact(a: number, b: number): number {
  assert(a % b === 0, `${b} must divide ${a}`);
  return a / b;
}

/** The smallest multiple of `multiple` that is not below `value`. */
export function roundUp(value: number, multiple: number): number {
  return ceilDiv(value, multiple) * multiple;
}

/** Whether `value` is a whole number in [least, most]. */
export function isIntegerIn(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;
}
