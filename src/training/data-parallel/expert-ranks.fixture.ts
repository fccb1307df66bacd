/**
 * @file Ranks that compute the gradients of one batch each, with the experts of the model divided
 * over some of them, and tell what all came to; and one process that does it all.
 */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { Model } from "../../model/model.ts";
import type { Batch, StepOptions, StepResult } from "../../model/model-types.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { randomBatch, TINY } from "../../model/test-support.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import type { LinkBytes } from "../../parallel/expert/exchange/expert-exchange.ts";
import { openMesh } from "../../parallel/mesh.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { type OptimizerPart, type StateSpans, stateSlice } from "../spans.ts";
import { ShardedReplicas } from "./zero.ts";

/** Two groups of experts a token, of four. */
export const CONFIG: ModelConfig = {
  ...TINY,
  hiddenDim: 128,
  moeIntermediateDim: 24,
  numExpertsPerToken: 3,
  numExpertGroups: 4,
  numChosenGroups: 2,
  numMtpModules: 1,
};

export const SEQUENCE_LENGTH = 24;

export interface ExpertRun {
  readonly recipe: PrecisionRecipe;
  readonly ep: number;
  readonly ranksPerHost: number;
  /** The last group's experts get no tokens. */
  readonly starves: boolean;
}

export interface ExpertRunReport {
  /** Of this rank's batch. */
  readonly result: StepResult;
  /** Of the mean over all ranks' batches, by parameter; experts in their order. */
  readonly gradients: ReadonlyMap<string, Float32Array>;
  readonly dispatched: LinkBytes;
  readonly combined: LinkBytes;
}

const OPTIONS = { mtpWeight: 0.3, balanceWeight: 1e-3, zLoss: 1e-4, computeGradients: true };
const SEED = 12;

/** This rank's report of each run. */
export async function runRank(context: RankContext): Promise<readonly ExpertRunReport[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  const batch = batchOf(world.rank);
  return (context.input as readonly ExpertRun[]).map((run) =>
    runOnRanks(device, world, run, batch),
  );
}

function batchOf(rank: number): Batch {
  return randomBatch(CONFIG, { numSequences: 1, seqLength: SEQUENCE_LENGTH, seed: 30 + rank });
}

/** The same of all ranks' batches, in one process. */
export function runInOneProcess(
  device: Device,
  { recipe, starves }: Pick<ExpertRun, "recipe" | "starves">,
  numRanks: number,
): Omit<ExpertRunReport, "dispatched" | "combined" | "result"> & {
  readonly results: StepResult[];
} {
  const model = new Model(device, CONFIG, { precision: recipe, seed: SEED });
  moveBiases(model, starves);
  const options: StepOptions = { ...OPTIONS, lossScale: 1 / numRanks };
  const results = Array.from({ length: numRanks }, (_, rank) =>
    model.forwardBackward(batchOf(rank), options),
  );
  const gradients = new Map(
    model.parameters.list.map(({ name, gradient }) => [name, Float32Array.from(view(gradient))]),
  );
  return { results, gradients };
}

function runOnRanks(
  device: Device,
  world: Communicator,
  { recipe, ep, ranksPerHost, starves }: ExpertRun,
  batch: Batch,
): ExpertRunReport {
  const mesh = openMesh(world, { pp: 1, ep, dp: world.size / ep });
  const experts = new ExpertShare(mesh.ep, CONFIG, { ranksPerHost });
  const model = new Model(device, CONFIG, { precision: recipe, seed: SEED, experts });
  moveBiases(model, starves);
  const scratch = new Arena(device.memory, "sums");
  const replicas = new ShardedReplicas(mesh, model.parameters, {
    nearestCut: (_, element) => element,
    scratch,
  });
  const result = model.forwardBackward(batch, { ...OPTIONS, lossScale: 1 / world.size });
  replicas.sumGradients();
  const whole = replicas.gatherState(gradientsOf(replicas.part));
  const gradients = new Map(
    model.parameters.list.map((parameter) => {
      const mine = stateSlice(model.parameters, parameter, whole);
      if (parameter.role !== "experts") return [parameter.name, Float32Array.from(view(mine))];
      const all = scratch.allocate(mine.dtype, [ep * mine.rows, mine.columns]);
      mesh.ep.allGather(mine, all).wait();
      return [parameter.name, Float32Array.from(view(all))];
    }),
  );
  const { dispatched, combined } = experts.exchange;
  return { result, gradients, dispatched, combined };
}

function gradientsOf({ spans }: OptimizerPart): StateSpans {
  const { decayed, undecayed, experts } = spans;
  return {
    kind: "gradient",
    decayed: decayed.gradients,
    undecayed: undecayed.gradients,
    experts: experts.gradients,
  };
}

/** Biases other than zero, so that one that is not read shows. */
function moveBiases({ gateBiases }: Model, starves: boolean): void {
  const random = new Random(SEED, "biases");
  for (const { bias } of gateBiases) {
    const values = view(bias);
    for (const [expert] of values.entries()) values[expert] = 0.1 * random.normal();
    if (starves) values.fill(-9, 6);
  }
}
