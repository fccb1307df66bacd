/**
 * @file One rank's trainer: its layers and experts, its part of the optimizer, what it holds of the
 * state.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { PipelineModel, type PipelineStep } from "../../model/pipeline/pipeline-model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { openMesh } from "../../parallel/mesh.ts";
import { Arena } from "../../tensor/arena.ts";
import { tuneExchange } from "../data-parallel/tune-exchange.ts";
import type { Suspect } from "../health.ts";
import type { ModelShare } from "../model-share.ts";
import { cutRuleOf } from "../optimizer/cut-rule.ts";
import type { TrainingSettings } from "../settings.ts";
import { type BatchSource, Trainer } from "../trainer.ts";
import { HeldState } from "./held-state.ts";
import { rankReplicas } from "./rank-replicas.ts";
import { expertRanksPerHost, pipelineShapeOf, type TrainingLayout } from "./training-layout.ts";

export interface RankTrainerOptions {
  readonly device: Device;
  readonly world: Communicator;
  readonly settings: TrainingSettings;
  /** Of all ranks of `world`. */
  readonly layout: TrainingLayout;
  readonly loader: BatchSource;
  /** The whole model, to be asked why a loss was not finite; null where another rank has it. */
  readonly suspect: () => Suspect | null;
}

export class RankTrainer implements AsyncDisposable {
  readonly model: PipelineModel;
  readonly trainer: Trainer;
  readonly held: HeldState;
  /** What this rank did in the last step. */
  timed: PipelineStep["timed"] = [];

  private constructor(model: PipelineModel, trainer: Trainer, experts: ExpertShare | null) {
    this.model = model;
    this.trainer = trainer;
    this.held = new HeldState(model, trainer, experts);
  }

  /** Collective. */
  static async start(options: RankTrainerOptions): Promise<RankTrainer> {
    const { world, settings, loader, layout } = options;
    const device = tickingDevice(options.device, () => world.tick());
    const { model: config, recipe: precision, seed } = settings;
    const mesh = openMesh(world, layout.mesh);
    const ranksPerHost = expertRanksPerHost(layout);
    const experts = mesh.ep.size === 1 ? null : new ExpertShare(mesh.ep, config, { ranksPerHost });
    const { numRanks: _, ...shape } = pipelineShapeOf(layout);
    const model = new PipelineModel(device, mesh.pp, config, {
      precision,
      seed,
      shape,
      ...(experts === null ? {} : { experts }),
    });
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
    const scratch = new Arena(device.memory, "replicas");
    const nearestCut = cutRuleOf(settings.optimizer.name, model.part.parameters.own);
    const replicas = rankReplicas(model, mesh, { nearestCut, scratch });
    const exchange = experts?.exchange;
    if (exchange !== undefined) tuneExchange(exchange, settings, scratch);
    const rank = { device, share, replicas, loader, settings, exchange };
    const trainer = await Trainer.startRank(rank);
    started = new RankTrainer(model, trainer, experts);
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
