/**
 * @file The micro-batches of a run over ranks: as few and as large as its pipelines admit.
 *
 * A step computes the same mean however it is divided; the micro-batches of a preset are chosen for
 * one process and may be too few, or an odd number. Then smaller ones are taken, and during a ramp
 * the batch grows by as many at a time as the schedule wants. Every pipeline has equally many. Both
 * are settings of the run, so one process can repeat it.
 */
import { OperationalError } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import { formatLayout } from "../../parallel/mesh.ts";
import { SCHEDULE_KINDS, SCHEDULES } from "../../parallel/pipeline/schedules/kinds.ts";
import type { BatchRamp } from "../budget.ts";
import type { TrainingSettings } from "../settings.ts";
import { numReplicasOf, pipelineShapeOf, type TrainingLayout } from "./training-layout.ts";

/** The settings, with batches that the layout admits in every step. */
export function fitBatches(settings: TrainingSettings, layout: TrainingLayout): TrainingSettings {
  const batch = fit(settings.batch, layout);
  if (batch === undefined) throw refusalOf(settings.batch, layout);
  return { ...settings, batch };
}

function fit(batch: BatchRamp, layout: TrainingLayout): BatchRamp | undefined {
  const replicas = numReplicasOf(layout);
  const multiples = [batch.multiple, replicas, 2 * replicas, layout.mesh.pp * replicas];
  for (let microBatch = batch.microBatch; microBatch >= 1; microBatch--) {
    for (const multiple of multiples) {
      const fitted = { ...batch, microBatch, multiple };
      if (isAdmitted(fitted, layout)) return fitted;
    }
  }
  return undefined;
}

function refusalOf(batch: BatchRamp, layout: TrainingLayout): OperationalError {
  const { mesh, schedule } = layout;
  const { rampFrom, sequences } = batch;
  const replicas = numReplicasOf(layout);
  const what = `batches of ${rampFrom} to ${sequences} sequences`;
  if (rampFrom % replicas !== 0 || sequences % replicas !== 0) {
    return new OperationalError(
      "parallel.schedule",
      `layout ${formatLayout(mesh)}: ${what} do not divide over ${replicas} pipelines; ` +
        `hadal train with a batch.sequences and a batch.rampFrom that are multiples of ${replicas}`,
      { mesh },
    );
  }
  const refusal = problem(layout, rampFrom / replicas);
  const each = replicas === 1 ? "" : `, ${replicas} pipelines sharing them`;
  return new OperationalError(
    "parallel.schedule",
    `${schedule} over ${mesh.pp} ranks${each} does not admit ${what}: ` +
      `${refusal ?? "their micro-batches cannot be divided so"}; take ${remedyOf(batch, layout)}`,
    { schedule, mesh },
  );
}

/** What admits the batches, or which batches are admitted, as flags. */
function remedyOf(batch: BatchRamp, layout: TrainingLayout): string {
  const schedules = SCHEDULE_KINDS.filter((schedule) => fit(batch, { ...layout, schedule }));
  const remedies = schedules.length === 0 ? [] : [`--schedule ${schedules.join(", ")}`];
  const unit = numReplicasOf(layout) * layout.mesh.pp;
  for (let factor = 1; factor <= 4; factor++) {
    const sequences = roundUp(batch.sequences, unit) * factor;
    if (fit({ ...batch, sequences, rampFrom: sequences }, layout) === undefined) continue;
    const flags = `--set batch.sequences=${sequences} --set batch.rampFrom=${sequences}`;
    // Named, because not every verb that trains has the flag.
    remedies.push(`hadal train with ${flags}`);
    break;
  }
  return remedies.length === 0 ? "another --layout" : remedies.join(", or ");
}

function isAdmitted(batch: BatchRamp, layout: TrainingLayout): boolean {
  const unit = batch.microBatch * batch.multiple;
  if (batch.sequences % unit !== 0 || batch.rampFrom % unit !== 0) return false;
  const replicas = numReplicasOf(layout);
  for (let sequences = batch.rampFrom; sequences <= batch.sequences; sequences += unit) {
    const numMicroBatches = sequences / batch.microBatch;
    if (numMicroBatches % replicas !== 0) return false;
    if (problem(layout, numMicroBatches / replicas) !== null) return false;
  }
  return true;
}

function problem(layout: TrainingLayout, numMicroBatches: number): string | null {
  return SCHEDULES[layout.schedule].refuse({ ...pipelineShapeOf(layout), numMicroBatches });
}
