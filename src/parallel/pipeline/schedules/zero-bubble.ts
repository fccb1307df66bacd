/**
 * @file ZB1P: 1F1B with its backwards split, so that weight gradients fill what would be bubble.
 *
 * Rank r runs P−r forwards ahead, then I, W, F in turn; its first r weight gradients are put off,
 * so that the last ranks answer sooner and every rank holds at most P micro-batches. The memory of
 * 1F1B, a third of its bubble at F = I = W.
 *
 * Source: Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, schedule ZB-H1.
 */
import type { ChunkAction, ChunkKind } from "../action.ts";
import { oneDirection } from "../layout.ts";
import type { Schedule, ScheduleSize } from "./schedule.ts";

export function zeroBubble({ numRanks, numMicroBatches }: ScheduleSize): Schedule {
  const stages = Array.from({ length: numRanks }, (_, stage) => stage);
  return {
    layout: oneDirection(numRanks, numMicroBatches, stages),
    ranks: stages.map((stage) => {
      const numAhead = Math.min(numRanks - stage, numMicroBatches);
      const numDeferred = Math.min(stage, numMicroBatches);
      const actions: ChunkAction[] = [];
      const push = (kind: ChunkKind, microBatch: number): void => {
        actions.push({ kind, stage, microBatch });
      };
      for (let microBatch = 0; microBatch < numAhead; microBatch++) push("F", microBatch);
      for (let microBatch = 0; microBatch < numMicroBatches; microBatch++) {
        push("I", microBatch);
        if (microBatch >= numDeferred) push("W", microBatch - numDeferred);
        const ahead = microBatch + numAhead;
        if (ahead < numMicroBatches) push("F", ahead);
      }
      for (let put = numMicroBatches - numDeferred; put < numMicroBatches; put++) push("W", put);
      return actions;
    }),
  };
}
