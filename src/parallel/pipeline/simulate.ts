/**
 * @file What a schedule would take: every action starts as soon as its rank is free and its inputs
 * are there.
 *
 * Memory is counted in chunks: a chunk is alive from the start of its F to the end of its B, or of
 * its W where the two halves run apart (the weights' half still needs the layers' inputs). A pair
 * holds both of its chunks.
 */
import { unreachable } from "../../base/errors.ts";
import { type Action, type ActionKind, type ChunkAction, partsOf } from "./action.ts";
import { type Message, messageOutOf, type PipelineLayout } from "./layout.ts";
import type { Schedule } from "./schedules/schedule.ts";

/** How long things take, in any unit. */
export interface CostModel {
  readonly durationOf: (action: Action, rank: number) => number;
  readonly latencyOf: (message: Message) => number;
}

export type ActionCosts = Readonly<Record<ActionKind, number>>;

/** F = I = W = ½B, and a pair takes what its halves take: the unit of Table 2's comparisons. */
export const UNIT_COSTS: ActionCosts = { F: 1, B: 2, I: 1, W: 1, "F&B": 3 };

export interface TimedAction {
  readonly action: Action;
  readonly start: number;
  readonly end: number;
}

export interface RankTimeline {
  readonly actions: readonly TimedAction[];
  /** Makespan less the time this rank is busy. */
  readonly bubble: number;
  readonly peakActivations: number;
}

export interface Timeline {
  readonly ranks: readonly RankTimeline[];
  readonly makespan: number;
  /** The largest of any rank. */
  readonly bubble: number;
  readonly peakActivations: number;
}

/** The same costs on every rank, and one latency for every message. */
export function fixedCosts(costs: ActionCosts, latency = 0): CostModel {
  return { durationOf: ({ kind }) => costs[kind], latencyOf: () => latency };
}

/** Runs a schedule that `findScheduleFault` finds nothing wrong with. */
export function simulate(schedule: Schedule, costs: CostModel): Timeline {
  const timed = runToEnd(schedule, costs);
  const blocked = timed.findIndex(({ length }, rank) => length < schedule.ranks[rank]!.length);
  if (blocked >= 0) unreachable(`rank ${blocked} waits for ever: the schedule was not validated`);
  return timelineOf(timed);
}

/** Makespan, bubbles and memory of what ranks did, planned or measured, from time 0. */
export function timelineOf(timed: readonly (readonly TimedAction[])[]): Timeline {
  const makespan = timed.flat().reduce((latest, { end }) => Math.max(latest, end), 0);
  const ranks = timed.map((actions) => ({
    actions,
    bubble: actions.reduce((idle, { start, end }) => idle - (end - start), makespan),
    peakActivations: peakActivations(actions.map(({ action }) => action)),
  }));
  return {
    ranks,
    makespan,
    bubble: Math.max(0, ...ranks.map(({ bubble }) => bubble)),
    peakActivations: Math.max(0, ...ranks.map((rank) => rank.peakActivations)),
  };
}

/**
 * Goes as far as the schedule lets it. The order in which ranks are looked at changes no time: a
 * start depends on ends that are known by then.
 */
export function runToEnd({ layout, ranks }: Schedule, costs: CostModel): TimedAction[][] {
  const timed: TimedAction[][] = ranks.map(() => []);
  const ends = new Map<string, number>();
  const waiting = new Map<string, number>();
  const ready = ranks.map((_, rank) => rank);
  for (let rank = ready.pop(); rank !== undefined; rank = ready.pop()) {
    const mine = timed[rank]!;
    for (const action of ranks[rank]!.slice(mine.length)) {
      const parts = partsOf(action);
      const inputs = parts.map((part) => inputTime(layout, part, { ends, costs }));
      const missing = inputs.find((input) => typeof input === "string");
      if (missing !== undefined) {
        waiting.set(missing, rank);
        break;
      }
      const start = Math.max(mine.at(-1)?.end ?? 0, ...(inputs as number[]));
      const end = start + costs.durationOf(action, rank);
      mine.push({ action, start, end });
      for (const part of parts) {
        const key = outputKey(part);
        ends.set(key, end);
        const woken = waiting.get(key);
        if (woken === undefined) continue;
        waiting.delete(key);
        ready.push(woken);
      }
    }
  }
  return timed;
}

/** When the inputs of a part are there, or the name of the one that is not yet known. */
function inputTime(
  layout: PipelineLayout,
  part: ChunkAction,
  known: { readonly ends: ReadonlyMap<string, number>; readonly costs: CostModel },
): number | string {
  let latest = 0;
  for (const input of inputsOf(layout, part)) {
    const end = known.ends.get(outputKey(input));
    if (end === undefined) return outputKey(input);
    const message = input.stage === part.stage ? null : messageOutOf(layout, input);
    latest = Math.max(latest, end + (message === null ? 0 : known.costs.latencyOf(message)));
  }
  return latest;
}

/** The actions whose results a part reads; B and I give the same result to the stage before. */
export function inputsOf(
  layout: PipelineLayout,
  { kind, stage, microBatch }: ChunkAction,
): ChunkAction[] {
  if (kind === "W") return [{ kind: "I", stage, microBatch }];
  if (kind === "F") return stage === 0 ? [] : [{ kind, stage: stage - 1, microBatch }];
  const own: ChunkAction = { kind: "F", stage, microBatch };
  const isLast = stage === layout.numStages - 1;
  return isLast ? [own] : [own, { kind: "I", stage: stage + 1, microBatch }];
}

/** Where a result is found again: `F` activations, `I` input gradients (of B too), `W`. */
function outputKey({ kind, stage, microBatch }: ChunkAction): string {
  return `${kind === "B" ? "I" : kind}${stage}.${microBatch}`;
}

/** The most chunks alive at once on a rank that runs these actions. */
export function peakActivations(actions: readonly Action[]): number {
  let alive = 0;
  let peak = 0;
  for (const action of actions) {
    const kinds = partsOf(action).map(({ kind }) => kind);
    if (kinds.includes("F")) alive++;
    peak = Math.max(peak, alive);
    if (kinds.includes("B") || kinds.includes("W")) alive--;
  }
  return peak;
}
