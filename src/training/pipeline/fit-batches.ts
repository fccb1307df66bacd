/**
 * @file The micro-batches of a run over a pipeline: as few and as large as the schedule admits.
 *
 * A step computes the same mean however it is divided; the micro-batches of a preset are chosen for
 * one process and may be too few, or an odd number. Then smaller ones are taken, and during a ramp
 * the batch grows by as many at a time as the schedule wants. Both are settings of the run, so one
 * process can repeat it.
 */
import { OperationalError } from "../../base/errors.ts";
import { layOutRanks } from "../../model/pipeline/rank-layout.ts";
import { SCHEDULES, type ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import type { BatchRamp } from "../budget.ts";
import type { TrainingSettings } from "../settings.ts";
import { STAGES_PER_RANK } from "./rank-trainer.ts";

/**
 * The settings, with batches that the schedule admits in every step; a model with too few layers
 * for its stages is refused.
 */
export function fitBatches(
  settings: TrainingSettings,
  kind: ScheduleKind,
  numRanks: number,
): TrainingSettings {
  const { batch, model } = settings;
  layOutRanks(model, { kind, numRanks, numStagesPerRank: STAGES_PER_RANK });
  for (let microBatch = batch.microBatch; microBatch >= 1; microBatch--) {
    for (const multiple of [batch.multiple, 2, numRanks]) {
      const fitted = { ...batch, microBatch, multiple };
      if (isAdmitted(fitted, kind, numRanks)) return { ...settings, batch: fitted };
    }
  }
  const refusal = problem(kind, numRanks, batch.rampFrom);
  throw new OperationalError(
    "parallel.schedule",
    `${kind} over ${numRanks} ranks does not admit batches of ${batch.rampFrom} to ` +
      `${batch.sequences} sequences: ${refusal ?? "their micro-batches cannot be divided so"}; ` +
      "change batch.sequences and batch.rampFrom, or take another --schedule",
    { kind, numRanks },
  );
}

function isAdmitted(batch: BatchRamp, kind: ScheduleKind, numRanks: number): boolean {
  const unit = batch.microBatch * batch.multiple;
  if (batch.sequences % unit !== 0 || batch.rampFrom % unit !== 0) return false;
  for (let sequences = batch.rampFrom; sequences <= batch.sequences; sequences += unit) {
    if (problem(kind, numRanks, sequences / batch.microBatch) !== null) return false;
  }
  return true;
}

function problem(kind: ScheduleKind, numRanks: number, numMicroBatches: number): string | null {
  const numStagesPerRank = STAGES_PER_RANK;
  return SCHEDULES[kind].refuse({ numRanks, numMicroBatches, numStagesPerRank });
}
