/**
 * @file DualPipe: micro-batches enter at both ends, and the forward of one direction is paired with
 * the backward of the other, so that each hides the other's communication. DualPipeV is its half:
 * the same program on a pipeline folded into a V, without the second copy of the parameters.
 *
 * Every rank runs eight steps. `near` is the direction that has fewer stages to go through before
 * it reaches this rank, `far` the other one. With H half the number of stages, h the distance to
 * the nearer end and N the micro-batches of one direction:
 *
 *   1  2(H−h−1)   F near
 *   2  h+1        F near, F far
 *   3  H−h−1      I far, W, F far
 *   4  N−2H+h+1   F near & B far, F far & B near
 *   5  H−h−1      B far, F far & B near
 *   6  h+1        B far, B near             (the second half as I)
 *   7  H−h−1      W, I near
 *   8  h+1        W
 *
 * Sources: DeepSeek-V3 report §3.2.1 and figure 5; "Cut-in-half" for DualPipeV (Sea AI Lab).
 * Differs from the released code: no messages here; receives are posted ahead by the executor, so
 * nothing is delayed to match a peer's batched sends.
 */
import { assert, defined } from "../../../base/errors.ts";
import { floorDiv } from "../../../base/integers.ts";
import type { Action, Chunk } from "../action.ts";
import { bidirectional, oneDirection } from "../layout.ts";
import type { Schedule, ScheduleSize } from "./schedule.ts";

/** An even number of ranks; an even number of micro-batches, at least two a rank. */
export function dualPipe({ numRanks, numMicroBatches }: ScheduleSize): Schedule {
  const half = numRanks / 2;
  const perDirection = numMicroBatches / 2;
  return {
    layout: bidirectional(numRanks, numMicroBatches),
    ranks: Array.from({ length: numRanks }, (_, rank) => {
      const forward = { stage: rank, first: 0 };
      const reverse = { stage: numRanks - 1 - rank, first: perDirection };
      const [near, far] = rank < half ? [forward, reverse] : [reverse, forward];
      const distance = Math.min(rank, numRanks - 1 - rank);
      return eightSteps({ half, distance, perDirection, near, far });
    }),
  };
}

/** Stages r and 2P−1−r on rank r; at least two micro-batches a rank. */
export function dualPipeV({ numRanks, numMicroBatches }: ScheduleSize): Schedule {
  const down = Array.from({ length: numRanks }, (_, rank) => rank);
  return {
    layout: oneDirection(numRanks, numMicroBatches, [...down, ...down.toReversed()]),
    ranks: down.map((rank) =>
      eightSteps({
        half: numRanks,
        distance: rank,
        perDirection: numMicroBatches,
        near: { stage: rank, first: 0 },
        far: { stage: 2 * numRanks - 1 - rank, first: 0 },
      }),
    ),
  };
}

/** The stage a rank runs for one direction, and the direction's first micro-batch. */
interface Lane {
  readonly stage: number;
  readonly first: number;
}

interface Position {
  readonly half: number;
  readonly distance: number;
  readonly perDirection: number;
  readonly near: Lane;
  readonly far: Lane;
}

function eightSteps({ half, distance, perDirection, near, far }: Position): readonly Action[] {
  const before = half - distance - 1;
  const after = distance + 1;
  const program = new RankProgram();
  repeat(2 * before, () => program.forward(near));
  repeat(after, () => {
    program.forward(near);
    program.forward(far);
  });
  repeat(before, () => {
    program.inputBackward(far);
    program.weightBackward();
    program.forward(far);
  });
  repeat(perDirection - 2 * half + after, (index) => {
    if (index === 0 && before === 0) {
      // In the middle the far backward waits for this very forward's sibling: nothing overlaps.
      program.forward(near);
      program.backward(far);
    } else program.pair(near, far);
    program.pair(far, near);
  });
  repeat(before, () => {
    program.backward(far);
    program.pair(far, near);
  });
  // From the middle of this step on, weight gradients are put off to fill the bubble.
  const switchAt = floorDiv(after, 2);
  const switchesBeforeFar = distance % 2 === 1;
  repeat(after, (index) => {
    const late = index > switchAt || (index === switchAt && switchesBeforeFar);
    if (late) program.inputBackward(far);
    else program.backward(far);
    if (index >= switchAt) program.inputBackward(near);
    else program.backward(near);
  });
  repeat(before, () => {
    program.weightBackward();
    program.inputBackward(near);
  });
  repeat(after, () => program.weightBackward());
  return program.finish();
}

function repeat(count: number, body: (index: number) => void): void {
  for (let index = 0; index < count; index++) body(index);
}

/** Writes one rank's actions; counts the micro-batches of each lane. */
class RankProgram {
  readonly #actions: Action[] = [];
  readonly #numForward = new Map<Lane, number>();
  readonly #numBackward = new Map<Lane, number>();
  readonly #deferred: Chunk[] = [];

  forward(lane: Lane): void {
    this.#actions.push({ kind: "F", ...take(this.#numForward, lane) });
  }

  backward(lane: Lane): void {
    this.#actions.push({ kind: "B", ...take(this.#numBackward, lane) });
  }

  inputBackward(lane: Lane): void {
    const chunk = take(this.#numBackward, lane);
    this.#actions.push({ kind: "I", ...chunk });
    this.#deferred.push(chunk);
  }

  /** The oldest weight gradient that was put off. */
  weightBackward(): void {
    const chunk = defined(this.#deferred.shift(), "a deferred weight gradient");
    this.#actions.push({ kind: "W", ...chunk });
  }

  pair(forward: Lane, backward: Lane): void {
    this.#actions.push({
      kind: "F&B",
      forward: take(this.#numForward, forward),
      backward: take(this.#numBackward, backward),
    });
  }

  finish(): readonly Action[] {
    assert(this.#deferred.length === 0, `${this.#deferred.length} weight gradients never ran`);
    return this.#actions;
  }
}

function take(counts: Map<Lane, number>, lane: Lane): Chunk {
  const count = counts.get(lane) ?? 0;
  counts.set(lane, count + 1);
  return { stage: lane.stage, microBatch: lane.first + count };
}
