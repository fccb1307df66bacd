/**
 * @file A pipeline schedule: a value made by a pure function, which the validator checks, the
 * simulator costs, the notation prints and the executor runs.
 */
import type { Action } from "../action.ts";
import type { PipelineLayout } from "../layout.ts";

export interface Schedule {
  readonly layout: PipelineLayout;
  /** What each rank does, in its order. */
  readonly ranks: readonly (readonly Action[])[];
}

export interface ScheduleSize {
  readonly numRanks: number;
  readonly numMicroBatches: number;
}
