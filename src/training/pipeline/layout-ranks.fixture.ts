/**
 * @file Ranks that compute the gradients of one step in many layouts, one after the other, and one
 * process that computes them alone. Layouts of fewer ranks leave the others idle.
 */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { Model } from "../../model/model.ts";
import type { Batch, GateBias, StepResult } from "../../model/model-types.ts";
import { spanNameOf } from "../../model/parameter-layout.ts";
import { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { randomBatch, TINY } from "../../model/test-support.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { numRanksOf, openMesh } from "../../parallel/mesh.ts";
import { Arena } from "../../tensor/arena.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { view } from "../../tensor/view.ts";
import { alone } from "../data-parallel/replicas.ts";
import { meanResult } from "../step-means.ts";
import type { HeldPiece } from "./held-state.ts";
import { rankReplicas } from "./rank-replicas.ts";
import { expertRanksPerHost, pipelineShapeOf, type TrainingLayout } from "./training-layout.ts";

/** A dense layer, MoE layers and an MTP module, experts in groups; widths of whole FP8 tiles. */
const CONFIG: ModelConfig = {
  ...TINY,
  hiddenDim: 128,
  moeIntermediateDim: 24,
  numExpertsPerToken: 3,
  numExpertGroups: 4,
  numChosenGroups: 2,
  numMtpModules: 1,
};
/** Enough for two pipelines of four ranks by DualPipe. */
const NUM_MICRO_BATCHES = 16;
const SEED = 12;
const OPTIONS = {
  mtpWeight: 0.3,
  balanceWeight: 1e-3,
  zLoss: 1e-4,
  computeGradients: true,
  lossScale: 1 / NUM_MICRO_BATCHES,
};

export interface LayoutCase {
  readonly layout: TrainingLayout;
  readonly recipe: PrecisionRecipe;
  readonly numLayers: number;
}

export interface GradientPiece extends HeldPiece {
  readonly values: Float32Array;
}

export interface LayoutReport {
  /** Of all micro-batches, the same on every rank. */
  readonly mean: StepResult;
  /** Of the parameters that this rank moves. */
  readonly gradients: readonly GradientPiece[];
  /** What a second step asked of the device. */
  readonly grownBytes: number;
}

/** This rank's report of each case; null where it was idle. */
export async function runRank(context: RankContext): Promise<(LayoutReport | null)[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  const reports: (LayoutReport | null)[] = [];
  for (const one of context.input as readonly LayoutCase[]) {
    const isPart = world.rank < numRanksOf(one.layout.mesh);
    const ranks = world.split(isPart ? 0 : null, world.rank, "ranks");
    reports.push(ranks === null ? null : runCase(device, ranks, one));
    world.barrier().wait();
  }
  return reports;
}

function runCase(
  device: Device,
  world: Communicator,
  { layout, recipe, numLayers }: LayoutCase,
): LayoutReport {
  const config = { ...CONFIG, numLayers };
  const mesh = openMesh(world, layout.mesh);
  const ranksPerHost = expertRanksPerHost(layout);
  const experts = new ExpertShare(mesh.ep, config, { ranksPerHost });
  const { numRanks: _, ...shape } = pipelineShapeOf(layout);
  const model = new PipelineModel(device, mesh.pp, config, {
    precision: recipe,
    seed: SEED,
    shape,
    ...(mesh.ep.size === 1 ? {} : { experts }),
  });
  moveBiases(model.part.gateBiases);
  const scratch = new Arena(device.memory, "replicas");
  const nearestCut = (_span: string, element: number): number => element;
  const replicas = rankReplicas(model, mesh, { nearestCut, scratch });
  const own = batchesOf(config).filter((_batch, index) => index % replicas.size === replicas.rank);
  const step = () => {
    const { results } = model.forwardBackward(own, OPTIONS);
    replicas.sumGradients();
    return meanResult(model, replicas, { results, numMicroBatches: NUM_MICRO_BATCHES });
  };
  step();
  const before = device.memory.reservedBytes;
  const mean = step();
  const grownBytes = device.memory.reservedBytes - before;
  const gradients = replicas.part.pieces.map(({ parameter, start, numElements, place }) => {
    const { name, role, shape: held } = parameter;
    const first = role === "experts" ? mesh.ep.rank * held[0] * held[1] : 0;
    const { gradients: all } = replicas.part.spans[spanNameOf(parameter)];
    const values = view(flatSlice(all, place, numElements));
    return { name, start: first + start, numElements, values: Float32Array.from(values) };
  });
  return { mean, gradients, grownBytes };
}

/** The same in one process. */
export function runInOneProcess(
  device: Device,
  { recipe, numLayers }: Pick<LayoutCase, "recipe" | "numLayers">,
): { readonly mean: StepResult; readonly gradients: ReadonlyMap<string, Float32Array> } {
  const config = { ...CONFIG, numLayers };
  const model = new Model(device, config, { precision: recipe, seed: SEED });
  moveBiases(model.gateBiases);
  const results = batchesOf(config).map((batch) => model.forwardBackward(batch, OPTIONS));
  const gradients = new Map(
    model.parameters.list.map(({ name, gradient }) => [name, Float32Array.from(view(gradient))]),
  );
  const step = { results, numMicroBatches: NUM_MICRO_BATCHES };
  return { mean: meanResult(model, alone(model.parameters.own), step), gradients };
}

function batchesOf(config: ModelConfig): Batch[] {
  return Array.from({ length: NUM_MICRO_BATCHES }, (_, index) =>
    randomBatch(config, { numSequences: 1, seqLength: 16, seed: 30 + index }),
  );
}

/** Biases other than zero, so that one that is not read shows. */
function moveBiases(biases: readonly GateBias[]): void {
  for (const { layerIndex, bias } of biases) {
    const random = new Random(SEED, `biases ${layerIndex}`);
    const values = view(bias);
    for (const [expert] of values.entries()) values[expert] = 0.1 * random.normal();
  }
}
