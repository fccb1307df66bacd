/**
 * @file GPipe: all forwards, then all backwards. Simple, and every micro-batch is alive at once.
 *
 * Source: Huang et al., arXiv 1811.06965.
 * Differs: backwards start with the first micro-batch, not with the last one: it takes as long, and
 * weight gradients add up in the order of the micro-batches, as under every other schedule.
 */
import type { ChunkAction, ChunkKind } from "../action.ts";
import { oneDirection } from "../layout.ts";
import type { Schedule, ScheduleSize } from "./schedule.ts";

export function gpipe({ numRanks, numMicroBatches }: ScheduleSize): Schedule {
  const stages = Array.from({ length: numRanks }, (_, stage) => stage);
  const microBatches = Array.from({ length: numMicroBatches }, (_, microBatch) => microBatch);
  return {
    layout: oneDirection(numRanks, numMicroBatches, stages),
    ranks: stages.map((stage) => {
      const action = (kind: ChunkKind, microBatch: number): ChunkAction => ({
        kind,
        stage,
        microBatch,
      });
      return [
        ...microBatches.map((microBatch) => action("F", microBatch)),
        ...microBatches.map((microBatch) => action("B", microBatch)),
      ];
    }),
  };
}
