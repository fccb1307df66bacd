/**
 * @file The schedules by name: what each admits, makes and promises.
 *
 * What a schedule promises is Table 2 of the DeepSeek-V3 report (GPipe and interleaved 1F1B from
 * their own papers): the bubble of every rank in terms of what a chunk costs, the chunks alive at
 * once, and how often a rank's share of the parameters is stored. B is the full backward. At
 * F = I = W = ½B and a pair of F + B the bubble is exact, else an upper bound.
 */
import { counted } from "../../../base/counted.ts";
import { OperationalError } from "../../../base/errors.ts";
import type { ActionCosts } from "../simulate.ts";
import { dualPipe, dualPipeV } from "./dual-pipe.ts";
import { gpipe } from "./gpipe.ts";
import { type InterleavedSize, interleaved } from "./interleaved.ts";
import { oneFOneB } from "./one-f-one-b.ts";
import type { Schedule } from "./schedule.ts";
import { zeroBubble } from "./zero-bubble.ts";

export const SCHEDULE_KINDS = [
  "gpipe",
  "1f1b",
  "interleaved",
  "zb1p",
  "dualpipe",
  "dualpipev",
] as const;
export type ScheduleKind = (typeof SCHEDULE_KINDS)[number];

/** `numStagesPerRank` matters to the interleaved schedule alone. */
export type ScheduleRequest = InterleavedSize;

export interface ScheduleDescription {
  readonly make: (size: ScheduleRequest) => Schedule;
  /** What is wrong with a size, or null. */
  readonly refuse: (size: ScheduleRequest) => string | null;
  /** Of a rank, while the micro-batches suffice to fill the pipeline. */
  readonly bubble: (size: ScheduleRequest, costs: ActionCosts) => number;
  readonly activations: (size: ScheduleRequest) => number;
  readonly parameterCopies: number;
}

const plainBubble = ({ numRanks }: ScheduleRequest, { F, B }: ActionCosts): number =>
  (numRanks - 1) * (F + B);

const pairedBubble = (half: number, costs: ActionCosts): number =>
  (half - 1) * (costs["F&B"] + costs.B - 3 * costs.W);

function mustBe(wanted: string): string {
  return `the number of micro-batches must be ${wanted}`;
}

export const SCHEDULES: Readonly<Record<ScheduleKind, ScheduleDescription>> = {
  gpipe: {
    make: gpipe,
    refuse: () => null,
    bubble: plainBubble,
    activations: ({ numMicroBatches }) => numMicroBatches,
    parameterCopies: 1,
  },
  "1f1b": {
    make: oneFOneB,
    refuse: () => null,
    bubble: plainBubble,
    activations: ({ numRanks }) => numRanks,
    parameterCopies: 1,
  },
  interleaved: {
    make: interleaved,
    refuse: ({ numRanks, numMicroBatches }) =>
      numMicroBatches % numRanks === 0 ? null : mustBe("a multiple of the ranks"),
    bubble: plainBubble,
    activations: ({ numRanks, numMicroBatches, numStagesPerRank }) =>
      Math.min(numStagesPerRank * numRanks + numRanks - 1, numStagesPerRank * numMicroBatches),
    parameterCopies: 1,
  },
  zb1p: {
    make: zeroBubble,
    refuse: () => null,
    bubble: ({ numRanks }, { F, B, W }) => (numRanks - 1) * (F + B - 2 * W),
    activations: ({ numRanks }) => numRanks,
    parameterCopies: 1,
  },
  dualpipe: {
    make: dualPipe,
    refuse: ({ numRanks, numMicroBatches }) => {
      if (numRanks % 2 !== 0) {
        return "the number of ranks must be even; 1f1b, zb1p and dualpipev take any";
      }
      const fits = numMicroBatches % 2 === 0 && numMicroBatches >= 2 * numRanks;
      return fits ? null : mustBe(`an even number, at least twice the ranks (${2 * numRanks})`);
    },
    bubble: ({ numRanks }, costs) => pairedBubble(numRanks / 2, costs),
    activations: ({ numRanks }) => numRanks + 1,
    parameterCopies: 2,
  },
  dualpipev: {
    make: dualPipeV,
    refuse: ({ numRanks, numMicroBatches }) =>
      numMicroBatches >= 2 * numRanks ? null : mustBe(`at least twice the ranks (${2 * numRanks})`),
    bubble: ({ numRanks }, costs) => pairedBubble(numRanks, costs),
    activations: ({ numRanks }) => 2 * numRanks + 1,
    parameterCopies: 1,
  },
};

/** The schedule of this kind and size; a size it does not admit is refused with what it admits. */
export function makeSchedule(kind: ScheduleKind, size: ScheduleRequest): Schedule {
  const problem = SCHEDULES[kind].refuse(size);
  if (problem !== null) {
    const { numRanks, numMicroBatches } = size;
    throw new OperationalError(
      "parallel.schedule",
      `${kind} over a pipeline of ${counted(numRanks, "rank")} with ` +
        `${counted(numMicroBatches, "micro-batch", "micro-batches")}: ${problem}`,
    );
  }
  return SCHEDULES[kind].make(size);
}
