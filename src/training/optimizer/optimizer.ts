/**
 * @file What an optimizer is to the trainer: one update of all parameters from their gradients, and
 * state to keep.
 */
import type { StateSpans } from "../spans.ts";

export interface OptimizerUpdate {
  readonly learningRate: number;
  /** Multiplies every gradient: clipping. */
  readonly gradientScale: number;
  /** 1 for the first update. */
  readonly step: number;
}

export interface Optimizer {
  /** Change the parameters' values; the gradients stay. The caller refreshes the compute copies. */
  update(update: OptimizerUpdate): void;
  /** Everything that the next update depends on, besides values and gradients. */
  readonly state: readonly StateSpans[];
}
