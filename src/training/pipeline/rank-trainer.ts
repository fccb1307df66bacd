/**
 * @file One rank's trainer over a pipeline: its layers, its part of the optimizer, its place in the
 * table of the state.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { PipelineModel, type PipelineStep } from "../../model/pipeline/pipeline-model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Suspect } from "../health.ts";
import type { ModelShare } from "../model-share.ts";
import type { TrainingSettings } from "../settings.ts";
import { type BatchSource, Trainer } from "../trainer.ts";
import { pipelineReplicas } from "./pipeline-replicas.ts";
import { makeStateTable, type StateTable } from "./state-table.ts";
import { tickingDevice } from "./ticking-device.ts";

/** Stages a rank has under the interleaved schedule. */
export const STAGES_PER_RANK = 2;

export interface RankTrainerOptions {
  readonly device: Device;
  readonly world: Communicator;
  readonly settings: TrainingSettings;
  readonly schedule: ScheduleKind;
  readonly loader: BatchSource;
  /** The whole model, to be asked why a loss was not finite; null where another rank has it. */
  readonly suspect: () => Suspect | null;
}

export class RankTrainer implements AsyncDisposable {
  readonly model: PipelineModel;
  readonly trainer: Trainer;
  readonly table: StateTable;
  /** What this rank did in the last step. */
  timed: PipelineStep["timed"] = [];

  private constructor(model: PipelineModel, trainer: Trainer) {
    this.model = model;
    this.trainer = trainer;
    this.table = makeStateTable(model, trainer);
  }

  /** Collective. */
  static async start(options: RankTrainerOptions): Promise<RankTrainer> {
    const { world, settings, loader } = options;
    const device = tickingDevice(options.device, { tick: () => world.tick() });
    const { model: config, recipe: precision, seed } = settings;
    const shape = { kind: options.schedule, numStagesPerRank: STAGES_PER_RANK };
    const model = new PipelineModel(device, world, config, { precision, seed, shape });
    let started: RankTrainer | undefined;
    const share: ModelShare = {
      config,
      parameters: model.part.parameters,
      gateBiases: model.part.gateBiases,
      moeLayerIndices: model.moeLayerIndices,
      computeGradients: (batches, stepOptions) => {
        const { results, timed } = model.forwardBackward(batches, stepOptions);
        if (started !== undefined) started.timed = timed;
        return results;
      },
      suspect: options.suspect,
    };
    const replicas = pipelineReplicas(model, new Arena(device.memory, "replicas"));
    const trainer = await Trainer.startRank({ device, share, replicas, loader, settings });
    started = new RankTrainer(model, trainer);
    return started;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.trainer[Symbol.asyncDispose]();
  }
}

/** Whether a step has failed as it does on all ranks alike. */
export function isNonFinite(error: unknown): boolean {
  return error instanceof OperationalError && error.code === "training.nonfinite";
}
