/**
 * @file Interleaved 1F1B: each rank holds `numStagesPerRank` thin stages, v of them, so that the
 * pipeline fills v times faster, for v times the messages.
 *
 * Stage s lives on rank s mod P. Micro-batches go in rounds of P: a round passes through a rank's
 * first stage, then through its second, and so on; backward takes the stages in reverse. A rank
 * runs 2(P−1−r) + (v−1)P forwards ahead. It needs micro-batches in whole rounds.
 *
 * Source: Narayanan et al., arXiv 2104.04473, §2.2.
 */
import { floorDiv } from "../../../base/integers.ts";
import type { Chunk, ChunkAction } from "../action.ts";
import { oneDirection } from "../layout.ts";
import type { Schedule, ScheduleSize } from "./schedule.ts";

export interface InterleavedSize extends ScheduleSize {
  readonly numStagesPerRank: number;
}

export function interleaved(size: InterleavedSize): Schedule {
  const { numRanks, numMicroBatches, numStagesPerRank } = size;
  const numStages = numRanks * numStagesPerRank;
  const rankOfStage = Array.from({ length: numStages }, (_, stage) => stage % numRanks);
  return {
    layout: oneDirection(numRanks, numMicroBatches, rankOfStage),
    ranks: Array.from({ length: numRanks }, (_, rank) => rankActions(size, rank)),
  };
}

function rankActions(size: InterleavedSize, rank: number): ChunkAction[] {
  const { numRanks, numMicroBatches, numStagesPerRank } = size;
  const numChunks = numMicroBatches * numStagesPerRank;
  const warmup = 2 * (numRanks - 1 - rank) + (numStagesPerRank - 1) * numRanks;
  // With a single round there is nothing to alternate: all forwards come first.
  const numAhead = numMicroBatches === numRanks ? numChunks : Math.min(warmup, numChunks);
  const forward = (index: number): Chunk => chunkAt(size, rank, index);
  const backward = (index: number): Chunk => {
    const { stage, microBatch } = chunkAt(size, rank, index);
    const place = floorDiv(stage, numRanks);
    return { stage: (numStagesPerRank - 1 - place) * numRanks + rank, microBatch };
  };
  const actions: ChunkAction[] = [];
  for (let index = 0; index < numAhead; index++) actions.push({ kind: "F", ...forward(index) });
  for (let index = 0; index < numChunks; index++) {
    const ahead = index + numAhead;
    if (ahead < numChunks) actions.push({ kind: "F", ...forward(ahead) });
    actions.push({ kind: "B", ...backward(index) });
  }
  return actions;
}

/** The chunk that a rank forwards as its `index`-th. */
function chunkAt({ numRanks, numStagesPerRank }: InterleavedSize, rank: number, index: number) {
  const round = floorDiv(index, numRanks * numStagesPerRank);
  const inRound = index % (numRanks * numStagesPerRank);
  const stage = floorDiv(inRound, numRanks) * numRanks + rank;
  return { stage, microBatch: round * numRanks + (inRound % numRanks) } satisfies Chunk;
}
