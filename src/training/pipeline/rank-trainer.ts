/**
 * @file One rank's trainer: its layers and experts, its part of the optimizer, what it holds of the
 * state.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import type { ExpertModel } from "../../model/expert-layers.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { PipelineModel, type PipelineStep } from "../../model/pipeline/pipeline-model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { openMesh } from "../../parallel/mesh.ts";
import { Arena } from "../../tensor/arena.ts";
import { tuneExchange } from "../data-parallel/tune-exchange.ts";
import { type BalanceOptions, ExpertBalancer } from "../expert-balance/expert-balancer.ts";
import { ExpertCopies } from "../expert-balance/expert-copies.ts";
import type { Suspect } from "../health.ts";
import type { ModelShare } from "../model-share.ts";
import { cutRuleOf } from "../optimizer/cut-rule.ts";
import type { TrainingSettings } from "../settings.ts";
import { type BatchSource, Trainer } from "../trainer.ts";
import { HeldState } from "./held-state.ts";
import { rankReplicas } from "./rank-replicas.ts";
import {
  expertRanksPerHost,
  type FollowingExperts,
  pipelineShapeOf,
  type TrainingLayout,
} from "./training-layout.ts";

/** The share of the busiest rank's load that moving must save; by feel. */
const LEAST_GAIN = 0.02;
const STAYING: FollowingExperts = { numRedundant: 0, rebalanceSteps: 0 };

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
    const following = layout.experts ?? STAYING;
    const { numRedundant } = following;
    const experts =
      mesh.ep.size === 1 ? null : new ExpertShare(mesh.ep, config, { ranksPerHost, numRedundant });
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
    const ofExperts = expertModelOf(model);
    const copies =
      experts?.hasCopies === true ? new ExpertCopies(experts, ofExperts, scratch) : null;
    const replicas = rankReplicas(model, mesh, { nearestCut, scratch, copies });
    const balancer =
      experts === null || following.rebalanceSteps === 0
        ? undefined
        : new ExpertBalancer(experts, ofExperts, balanceOf(following), {
            places: { ...mesh, parts: replicas.expertParts },
            scratch,
            spreadValues: () => model.spreadValues(),
          });
    const exchange = experts?.exchange;
    if (exchange !== undefined) tuneExchange(exchange, settings, scratch);
    const rank = { device, share, replicas, loader, settings, exchange, balancer };
    const trainer = await Trainer.startRank(rank);
    started = new RankTrainer(model, trainer, experts);
    return started;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.trainer[Symbol.asyncDispose]();
  }
}

/** The layers of the whole model, with this rank's parameters. */
function expertModelOf({ config, moeLayerIndices, part }: PipelineModel): ExpertModel {
  return { config, moeLayerIndices, parameters: part.parameters };
}

/** What is as long ago as the experts have stayed counts half. */
function balanceOf({ rebalanceSteps }: FollowingExperts): BalanceOptions {
  const history = { kind: "movingAverage", decay: 0.5 ** (1 / rebalanceSteps) } as const;
  return { everySteps: rebalanceSteps, leastGain: LEAST_GAIN, history };
}

/** Whether a step has failed as it does on all ranks alike. */
export function isNonFinite(error: unknown): boolean {
  return error instanceof OperationalError && error.code === "training.nonfinite";
}
