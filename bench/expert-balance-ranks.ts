/**
 * @file What each rank of `bench/expert-balance.ts` does: trains a model whose gates prefer a few
 * experts, first with the experts where they began, then where their load puts them.
 */
import process from "node:process";
import { openCpuDevice } from "../src/kernels/cpu.ts";
import { ExpertShare } from "../src/model/expert-share.ts";
import { Model } from "../src/model/model.ts";
import { presetConfig } from "../src/model/presets.ts";
import { randomBatch } from "../src/model/test-support.ts";
import type { RankContext } from "../src/parallel/communicator/rank-program.ts";
import { openMesh } from "../src/parallel/mesh.ts";
import { Arena } from "../src/tensor/arena.ts";
import { view } from "../src/tensor/view.ts";
import { ShardedReplicas } from "../src/training/data-parallel/zero.ts";
import {
  ExpertBalancer,
  type LayerBalance,
} from "../src/training/expert-balance/expert-balancer.ts";
import { ExpertCopies } from "../src/training/expert-balance/expert-copies.ts";
import { AdamW, nearestRow } from "../src/training/optimizer/adamw.ts";
import { PRECISION_RECIPES, type RecipeName } from "../src/training/recipe/recipes.ts";

export interface BalanceInput {
  readonly recipe: RecipeName;
  readonly numRedundant: number;
  readonly steps: number;
}

/** In seconds: by the clock, and what the rank's thread computed meanwhile. */
export interface StepTime {
  readonly wall: number;
  readonly busy: number;
}

export interface BalanceReport {
  /** Of all ranks together. */
  readonly tokensPerStep: number;
  readonly before: readonly StepTime[];
  readonly after: readonly StepTime[];
  /** What moving took. */
  readonly pause: number;
  readonly bytesMoved: number;
  /** Of one batch, before and after experts moved. */
  readonly losses: readonly [before: number, after: number];
  readonly balances: readonly LayerBalance[];
}

/** The small preset with wider experts, so that they are most of the work. */
const CONFIG = {
  ...presetConfig("small", 512),
  numLayers: 5,
  moeIntermediateDim: 512,
  numMtpModules: 0,
};
/** Experts that the gates prefer, of those that begin on rank 0 alone. */
const NUM_HOT = 6;
const OPTIONS = { mtpWeight: 0, balanceWeight: 0, zLoss: 0, computeGradients: true };

export async function runRank(context: RankContext): Promise<BalanceReport> {
  const { recipe, numRedundant, steps } = context.input as BalanceInput;
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  const mesh = openMesh(world, { pp: 1, ep: world.size, dp: 1 });
  const experts = new ExpertShare(mesh.ep, CONFIG, { ranksPerHost: world.size, numRedundant });
  const precision = PRECISION_RECIPES[recipe];
  const model = new Model(device, CONFIG, { precision, seed: 1, experts });
  preferFew(model, experts);
  const scratch = new Arena(device.memory, "scratch");
  const copies = new ExpertCopies(experts, model, scratch);
  const sharding = { nearestCut: nearestRow, scratch, copies };
  const replicas = new ShardedReplicas(mesh, model.parameters, sharding);
  const hyper = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
  const optimizer = new AdamW(device, new Arena(device.memory, "moments"), replicas.part, hyper);
  const history = { kind: "window", numCounts: steps } as const;
  const balance = { everySteps: steps + 1, leastGain: 0.01, history };
  const places = { ...mesh, parts: replicas.expertParts };
  const balancer = new ExpertBalancer(experts, model, balance, { places, scratch });
  const batch = randomBatch(CONFIG, { numSequences: 4, seqLength: 128, seed: world.rank });
  let load: readonly Int32Array[] = [];
  let numSteps = 0;
  const takeStep = (): void => {
    model.parameters.zeroGradients();
    const { expertLoad } = model.forwardBackward(batch, { ...OPTIONS, lossScale: 1 / world.size });
    replicas.sumGradients();
    optimizer.update({ learningRate: 1e-4, gradientScale: 1, step: ++numSteps });
    replicas.gatherValues();
    model.parameters.refreshCompute();
    const all = replicas.sum(Float64Array.from(expertLoad.flatMap((layer) => [...layer])));
    load = expertLoad.map((layer, order) =>
      Int32Array.from(all.subarray(order * layer.length, (order + 1) * layer.length)),
    );
  };
  const timeSteps = (): StepTime[] =>
    Array.from({ length: steps }, () => {
      world.barrier().wait();
      const start = performance.now();
      const used = process.threadCpuUsage();
      takeStep();
      const { user, system } = process.threadCpuUsage(used);
      world.barrier().wait();
      return { wall: (performance.now() - start) / 1000, busy: (user + system) / 1e6 };
    });
  const lossNow = (): number => {
    const losses = model.evaluate(batch);
    const own = losses.reduce((sum, value) => sum + value, 0) / losses.length;
    return replicas.sum(Float64Array.of(own))[0]! / world.size;
  };
  takeStep();
  const timesBefore = timeSteps();
  const before = lossNow();
  const states = (): readonly Parameters<typeof view>[0][] =>
    optimizer.state.map((state) => state.experts);
  const start = performance.now();
  const balances = balancer.follow(steps, load, states);
  const pause = (performance.now() - start) / 1000;
  const after = lossNow();
  takeStep();
  const moved = balances.reduce((sum, { numMoves }) => sum + numMoves, 0);
  return {
    tokensPerStep: world.size * batch.numSequences * batch.seqLength,
    before: timesBefore,
    after: timeSteps(),
    pause,
    bytesMoved: moved * 3 * 4 * 3 * CONFIG.moeIntermediateDim * CONFIG.hiddenDim,
    losses: [before, after],
    balances,
  };
}

function preferFew({ gateBiases }: Model, experts: ExpertShare): void {
  for (const { layerIndex, bias } of gateBiases) {
    const { logicalToPhysical } = experts.layer(layerIndex).current;
    const onFirst = [...logicalToPhysical.keys()].filter((expert) =>
      logicalToPhysical[expert]!.every((place) => place < experts.numHeld),
    );
    for (const expert of onFirst.slice(0, NUM_HOT)) view(bias)[expert] = 1;
  }
}
