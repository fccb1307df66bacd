/**
 * @file 1F1B: each rank runs just as many forwards ahead as the first gradient needs to come back,
 * then alternates. The bubble of GPipe, but at most P micro-batches alive.
 *
 * Source: Narayanan et al., PipeDream-Flush, arXiv 2006.09503.
 */
import type { ChunkAction, ChunkKind } from "../action.ts";
import { oneDirection } from "../layout.ts";
import type { Schedule, ScheduleSize } from "./schedule.ts";

export function oneFOneB({ numRanks, numMicroBatches }: ScheduleSize): Schedule {
  const stages = Array.from({ length: numRanks }, (_, stage) => stage);
  return {
    layout: oneDirection(numRanks, numMicroBatches, stages),
    ranks: stages.map((stage) => {
      const numAhead = Math.min(numRanks - 1 - stage, numMicroBatches);
      const actions: ChunkAction[] = [];
      const push = (kind: ChunkKind, microBatch: number): void => {
        actions.push({ kind, stage, microBatch });
      };
      for (let microBatch = 0; microBatch < numAhead; microBatch++) push("F", microBatch);
      for (let microBatch = 0; microBatch < numMicroBatches; microBatch++) {
        const ahead = microBatch + numAhead;
        if (ahead < numMicroBatches) push("F", ahead);
        push("B", microBatch);
      }
      return actions;
    }),
  };
}
