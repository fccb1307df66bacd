/**
 * @file What the ranks of a run do together in an optimizer step: the seam between the trainer and
 * data parallelism.
 *
 * Each rank computes the gradients of its own micro-batches, then, in this order: `sumGradients`,
 * `sumParts` for the norm, the optimizer over `part`, `gatherValues`. A rank alone does nothing of
 * that.
 */
import { SPAN_NAMES } from "../../model/parameter-layout.ts";
import type { OwnParameters } from "../../model/parameters.ts";
import type { ElementRange } from "../../tensor/flat-slice.ts";
import { view } from "../../tensor/view.ts";
import { type OptimizerPart, type OptimizerPiece, type StateSpans, wholeOf } from "../spans.ts";

export interface Replicas {
  /**
   * Ranks that share the micro-batches of a step: this one takes every `size`-th from `rank` on.
   */
  readonly rank: number;
  readonly size: number;
  /** Whether all must have as many: ranks that share experts go through their passes together. */
  readonly inStep: boolean;
  /** What this rank's optimizer moves. */
  readonly part: OptimizerPart;
  /** The part of the experts' span that each rank with the same experts moves. */
  readonly expertParts: readonly ElementRange[];
  /** What of it counts in the gradient's norm: of every expert one copy. */
  countedPieces(): readonly OptimizerPiece[];
  /**
   * Collective: afterwards the part's gradients are the sums of all ranks'; others' are anything.
   */
  sumGradients(): void;
  /** Collective: afterwards every parameter's value is that of the rank that moved it. */
  gatherValues(): void;
  /**
   * Collective: over the ranks that share the micro-batches, element by element, in their order.
   */
  sum(values: Float64Array): Float64Array;
  /** Collective: the same over the ranks that move parts of the parameters. */
  sumParts(values: Float64Array): Float64Array;
  /** Collective: the state of all parameters, from each rank's part of it. */
  gatherState(part: StateSpans): StateSpans;
  /** Fill this rank's part from a state of all parameters. */
  takeState(whole: StateSpans, part: StateSpans): void;
  /** A sign of life, where a rank computes for long while others may wait. */
  tick(): void;
}

/** Copy a state's values into another of the same parameters. */
function copyState(from: StateSpans, to: StateSpans): void {
  for (const span of SPAN_NAMES) view(to[span]).set(view(from[span]));
}

/** One rank, which moves all parameters. */
export function alone(parameters: OwnParameters): Replicas {
  const part = wholeOf(parameters);
  return {
    rank: 0,
    size: 1,
    inStep: false,
    part,
    expertParts: [{ start: 0, end: parameters.experts.values.columns }],
    countedPieces: () => part.pieces,
    sumGradients: () => {},
    gatherValues: () => {},
    sum: (values) => values,
    sumParts: (values) => values,
    gatherState: (state) => state,
    takeState: copyState,
    tick: () => {},
  };
}
