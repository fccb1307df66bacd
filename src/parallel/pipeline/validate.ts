/**
 * @file What makes a schedule wrong. Schedules of this folder are right by construction and by
 * test; this is for those that were read from a file, and for the tests.
 */
import { type Chunk, type ChunkAction, type ChunkKind, describeChunk, partsOf } from "./action.ts";
import {
  directionOf,
  type Message,
  messageInto,
  messageOutOf,
  type PipelineLayout,
  streamOf,
} from "./layout.ts";
import type { Schedule } from "./schedules/schedule.ts";
import { fixedCosts, runToEnd, UNIT_COSTS } from "./simulate.ts";

/** The first thing wrong with a schedule, as a sentence; null if it can be run. */
export function findScheduleFault(schedule: Schedule): string | null {
  if (schedule.ranks.length !== schedule.layout.numRanks) {
    return `${schedule.ranks.length} rows for ${schedule.layout.numRanks} ranks`;
  }
  return (
    findMisplaced(schedule) ??
    findMiscounted(schedule) ??
    findDeadlock(schedule) ??
    findDisorder(schedule)
  );
}

/** Every chunk is one of the layout's, on the rank that holds its stage. */
function findMisplaced({ layout, ranks }: Schedule): string | null {
  for (const [rank, actions] of ranks.entries()) {
    for (const part of actions.flatMap(partsOf)) {
      if (!isChunkOf(layout, part)) return `rank ${rank}: there is no ${describeChunk(part)}`;
      const holder = directionOf(layout, part.microBatch).rankOfStage[part.stage];
      if (holder !== rank) return `rank ${rank}: ${describeChunk(part)} belongs to rank ${holder}`;
    }
  }
  return null;
}

function isChunkOf({ numStages, numMicroBatches }: PipelineLayout, chunk: Chunk): boolean {
  return chunk.stage < numStages && chunk.microBatch < numMicroBatches;
}

/** Every micro-batch goes forward once and backward once through each stage. */
function findMiscounted({ layout, ranks }: Schedule): string | null {
  const counts = new Map<string, number>();
  const countOf = (kind: ChunkKind, { stage, microBatch }: Chunk): number =>
    counts.get(describeChunk({ kind, stage, microBatch })) ?? 0;
  for (const part of ranks.flat().flatMap(partsOf)) {
    counts.set(describeChunk(part), countOf(part.kind, part) + 1);
  }
  for (let stage = 0; stage < layout.numStages; stage++) {
    for (let microBatch = 0; microBatch < layout.numMicroBatches; microBatch++) {
      const chunk = { stage, microBatch };
      const [f, b, i, w] = (["F", "B", "I", "W"] as const).map((kind) => countOf(kind, chunk));
      const right = f === 1 && i === w && b! + i! === 1;
      if (right) continue;
      return (
        `stage ${stage}, micro-batch ${microBatch}: ` +
        `${f} F, ${b} B, ${i} I and ${w} W; one F, and one B or one I and one W, is right`
      );
    }
  }
  return null;
}

/** With a rank's order fixed, what blocks for some timing of the messages blocks for every one. */
function findDeadlock(schedule: Schedule): string | null {
  const timed = runToEnd(schedule, fixedCosts(UNIT_COSTS));
  const rank = timed.findIndex(({ length }, index) => length < schedule.ranks[index]!.length);
  if (rank < 0) return null;
  const action = schedule.ranks[rank]![timed[rank]!.length]!;
  const names = partsOf(action).map(describeChunk).join(" & ");
  return `rank ${rank} waits for ever for what ${names} needs`;
}

/** Messages of a stream arrive in the order they were sent: they must be wanted in that order. */
function findDisorder({ layout, ranks }: Schedule): string | null {
  const sent = new Map<string, number[]>();
  const wanted = new Map<string, number[]>();
  const note = (lists: Map<string, number[]>, message: Message | null): void => {
    if (message === null) return;
    const key = `rank ${message.from} to ${message.to}, stream ${streamOf(layout, message)}`;
    lists.set(key, [...(lists.get(key) ?? []), message.microBatch]);
  };
  const parts: readonly ChunkAction[] = ranks.flat().flatMap(partsOf);
  for (const part of parts) {
    note(sent, messageOutOf(layout, part));
    note(wanted, messageInto(layout, part));
  }
  for (const [key, microBatches] of sent) {
    if (`${wanted.get(key)}` !== `${microBatches}`) {
      return `${key}: sent ${microBatches}, wanted ${wanted.get(key)}`;
    }
  }
  return null;
}
