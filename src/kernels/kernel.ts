/**
 * @file A kernel is declared once: its name, its slots, its variants, and the implementations
 * behind it.
 *
 * `declaration.slots` names the numbers that cross to worker threads and native code, in order. A
 * variant is a string such as "f32" or "nt.bf16"; every implementation says which variants it can
 * run and why not the others. The last implementation is the reference: plain loops in TypeScript
 * with f64 sums, never optimised, always able to run.
 */
import { unreachable } from "../base/errors.ts";
import type { KernelBody, ThreadContext } from "../device/program.ts";

export type KernelTarget = "x64" | "wasm" | "reference";

/** One way of running a kernel. */
export interface KernelImplementation {
  readonly target: KernelTarget;
  /** null if it can run `variant` here; otherwise the reason, for people. */
  refusal(variant: string, context: ThreadContext): string | null;
  /** Generates the body; called once a thread and variant. */
  create(variant: string, context: ThreadContext): KernelBody;
}

/** One kernel and everything behind it. */
export interface KernelDeclaration {
  readonly name: string;
  readonly variants: readonly string[];
  readonly slots: readonly string[];
  /** Best first; the last is the reference. */
  readonly implementations: readonly KernelImplementation[];
}

/**
 * Position of each slot by name: `const AT = slotIndex(declaration.slots)`, then `slots[AT.rows]`.
 */
export function slotIndex<const Name extends string>(names: readonly Name[]): Record<Name, number> {
  return Object.fromEntries(names.map((name, index) => [name, index])) as Record<Name, number>;
}

/** The reference implementation: runs every variant, everywhere. */
export function reference(
  create: (variant: string, context: ThreadContext) => KernelBody,
): KernelImplementation {
  return { target: "reference", refusal: () => null, create };
}

/** Slot `index` of a launch. */
export function slot(slots: Float64Array, index: number): number {
  const value = slots[index];
  // Not `defined`: bodies read many slots, and its text would be made for each.
  if (value === undefined) unreachable(`slot ${index} is missing`);
  return value;
}
