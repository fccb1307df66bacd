/**
 * @file How the ranks of a run divide its work: the lengths of the mesh's axes, the schedule of
 * each pipeline, and how many ranks a machine has.
 *
 * Each of the ep·dp pipelines has its share of a step's micro-batches, in turns. Ranks along `ep`
 * share the experts of a stage and are replicas of everything else, as along `dp`.
 */
import { OperationalError } from "../../base/errors.ts";
import { checkRecipeOverRanks } from "../../model/expert-ranks.ts";
import { placesOver } from "../../model/expert-share.ts";
import { layOutRanks, type PipelineShape } from "../../model/pipeline/rank-layout.ts";
import { formatLayout, type MeshShape } from "../../parallel/mesh.ts";
import type { ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { checkMoments } from "../expert-balance/expert-balancer.ts";
import type { TrainingSettings } from "../settings.ts";

/** Stages a rank has under the interleaved schedule. */
const STAGES_PER_RANK = 2;

/** Experts that follow their load, over ranks that share them. */
export interface FollowingExperts {
  /** Places beyond one for each expert. */
  readonly numRedundant: number;
  /** After so many steps they are placed anew; never if 0. */
  readonly rebalanceSteps: number;
}

export interface TrainingLayout {
  readonly mesh: MeshShape;
  readonly schedule: ScheduleKind;
  readonly ranksPerHost: number;
  /** Experts stay where they begin if it is left out. */
  readonly experts?: FollowingExperts;
}

/** Of each of its pipelines. */
export function pipelineShapeOf({ mesh, schedule }: TrainingLayout): PipelineShape {
  return { kind: schedule, numRanks: mesh.pp, numStagesPerRank: STAGES_PER_RANK };
}

/** Pipelines that share the micro-batches of a step. */
export function numReplicasOf({ mesh }: TrainingLayout): number {
  return mesh.ep * mesh.dp;
}

/**
 * Neighbours along `ep` on one machine. Where machines do not divide the axis, nor it them, every
 * rank counts as one by itself: messages are then more than they would have to be.
 */
export function expertRanksPerHost({ mesh, ranksPerHost }: TrainingLayout): number {
  if (ranksPerHost % mesh.ep === 0) return mesh.ep;
  return mesh.ep % ranksPerHost === 0 ? ranksPerHost : 1;
}

/**
 * Refuse a layout whose stages have no layers, or whose ranks have no equal shares of experts, or
 * could not keep copies of one alike.
 */
export function checkLayout(settings: TrainingSettings, layout: TrainingLayout): void {
  const { model, recipe } = settings;
  layOutRanks(model, pipelineShapeOf(layout));
  const { mesh } = layout;
  if (mesh.ep === 1) return;
  if (model.numRoutedExperts === 0) {
    throw new OperationalError(
      "parallel.experts",
      `layout ${formatLayout(mesh)}: a dense model has no experts to share; ` +
        `take ${formatLayout({ ...mesh, ep: 1, dp: mesh.dp * mesh.ep })}`,
    );
  }
  const { numRedundant } = layout.experts ?? { numRedundant: 0 };
  placesOver(mesh.ep, model, { ranksPerHost: expertRanksPerHost(layout), numRedundant });
  if (numRedundant > 0) checkMoments(settings);
  checkRecipeOverRanks(recipe);
}
