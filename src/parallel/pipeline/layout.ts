/**
 * @file Where the stages of a pipeline live, and which messages flow between them.
 *
 * A micro-batch runs through every stage in order. In a bidirectional pipeline every rank holds
 * two stages, and half of the micro-batches enter at the first rank (the forward direction), half
 * at the last (reverse). In a pipeline of one direction a rank may hold several stages, and every
 * micro-batch visits all of them.
 *
 *   directions[d].rankOfStage[s]   the rank that runs stage s for micro-batches of direction d
 *   directions[d].microBatches     [first, end) of them
 */
import { assert, defined } from "../../base/errors.ts";
import type { Chunk, ChunkAction } from "./action.ts";

export const DIRECTIONS = ["forward", "reverse"] as const;
export type Direction = (typeof DIRECTIONS)[number];

export interface DirectionLayout {
  readonly direction: Direction;
  readonly rankOfStage: readonly number[];
  readonly firstMicroBatch: number;
  readonly endMicroBatch: number;
}

export interface PipelineLayout {
  readonly numRanks: number;
  readonly numStages: number;
  readonly numMicroBatches: number;
  readonly directions: readonly DirectionLayout[];
}

/** What a chunk needs from another rank, or gives to one. */
export interface Message {
  readonly content: "activation" | "gradient";
  readonly direction: Direction;
  readonly microBatch: number;
  /** The stage whose boundary it crosses: what flows is between `stage` and `stage + 1`. */
  readonly boundary: number;
  readonly from: number;
  readonly to: number;
}

/** All micro-batches flow one way; `rankOfStage` says where each stage lives. */
export function oneDirection(
  numRanks: number,
  numMicroBatches: number,
  rankOfStage: readonly number[],
): PipelineLayout {
  return {
    numRanks,
    numStages: rankOfStage.length,
    numMicroBatches,
    directions: [
      { direction: "forward", rankOfStage, firstMicroBatch: 0, endMicroBatch: numMicroBatches },
    ],
  };
}

/** Stage s on rank s for the first half of the micro-batches, on rank P−1−s for the second. */
export function bidirectional(numRanks: number, numMicroBatches: number): PipelineLayout {
  const half = numMicroBatches / 2;
  const ranks = Array.from({ length: numRanks }, (_, rank) => rank);
  return {
    numRanks,
    numStages: numRanks,
    numMicroBatches,
    directions: [
      { direction: "forward", rankOfStage: ranks, firstMicroBatch: 0, endMicroBatch: half },
      {
        direction: "reverse",
        rankOfStage: ranks.toReversed(),
        firstMicroBatch: half,
        endMicroBatch: numMicroBatches,
      },
    ],
  };
}

/** Which way a micro-batch flows. */
export function directionOf(layout: PipelineLayout, microBatch: number): DirectionLayout {
  return defined(
    layout.directions.find(
      ({ firstMicroBatch, endMicroBatch }) =>
        microBatch >= firstMicroBatch && microBatch < endMicroBatch,
    ),
    `the direction of micro-batch ${microBatch}`,
  );
}

/** The rank that runs a chunk. */
export function rankOf(layout: PipelineLayout, { stage, microBatch }: Chunk): number {
  return defined(directionOf(layout, microBatch).rankOfStage[stage], `the rank of stage ${stage}`);
}

/** The stages in which `rank` meets `microBatch`, in the order of the forward pass. */
export function stagesOf(layout: PipelineLayout, rank: number, microBatch: number): number[] {
  return directionOf(layout, microBatch).rankOfStage.flatMap((holder, stage) =>
    holder === rank ? [stage] : [],
  );
}

/** The message that F, B or I waits for; null where its input is made on the same rank. */
export function messageInto(layout: PipelineLayout, action: ChunkAction): Message | null {
  if (action.kind === "W") return null;
  if (action.kind === "F") return messageAcross(layout, action, "activation", action.stage - 1);
  return messageAcross(layout, action, "gradient", action.stage);
}

/** The message that F, B or I gives rise to; null where its result stays on the same rank. */
export function messageOutOf(layout: PipelineLayout, action: ChunkAction): Message | null {
  if (action.kind === "W") return null;
  if (action.kind === "F") return messageAcross(layout, action, "activation", action.stage);
  return messageAcross(layout, action, "gradient", action.stage - 1);
}

function messageAcross(
  layout: PipelineLayout,
  { microBatch }: Chunk,
  content: Message["content"],
  boundary: number,
): Message | null {
  if (boundary < 0 || boundary >= layout.numStages - 1) return null;
  const { direction, rankOfStage } = directionOf(layout, microBatch);
  const before = rankOfStage[boundary]!;
  const after = rankOfStage[boundary + 1]!;
  if (before === after) return null;
  const [from, to] = content === "activation" ? [before, after] : [after, before];
  return { content, direction, microBatch, boundary, from, to };
}

/**
 * Number of the stream a message belongs to: between two ranks, messages of one stream are sent
 * and received in the same order, those of different streams in any. A rank pair may share several
 * boundaries (interleaved stages), and both directions of a bidirectional pipeline.
 */
export function streamOf(layout: PipelineLayout, message: Message): number {
  assert(message.boundary < layout.numStages - 1, "a message crosses a boundary between stages");
  const half = DIRECTIONS.indexOf(message.direction) * 2 + (message.content === "gradient" ? 1 : 0);
  return message.boundary * 4 + half;
}
