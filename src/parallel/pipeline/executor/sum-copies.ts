/**
 * @file In a bidirectional pipeline every stage lives twice: the gradients of both copies are
 * added, so that both copies take the same step.
 *
 * Ranks r and P−1−r hold the same two stages. Each adds the other's gradients to its own; the sum
 * of two does not depend on their order. Pipelines of one direction have nothing to add.
 */
import { assert } from "../../../base/errors.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import type { PipelineLayout } from "../layout.ts";

/** Collective over the pipeline; `gradients` are this rank's, stage by stage in ascending order. */
export function sumCopies(
  layout: PipelineLayout,
  pipeline: Communicator,
  gradients: readonly Tensor[],
): void {
  if (layout.directions.length === 1) return;
  const { rank, size } = pipeline;
  const pair = pipeline.split(Math.min(rank, size - 1 - rank), rank, "copies");
  assert(pair !== null && pair.size === 2, "every stage has two copies, on two ranks");
  const sums = gradients.map((gradient) => pair.allReduce(gradient, gradient, "sum"));
  for (const sum of sums) sum.wait();
}
