/**
 * @file What each rank of `bench/expert-balance.ts` does: trains two equal models whose gates
 * prefer a few experts, in turns. In one the experts stay where they began; in the other they move
 * to where their load puts them, after the first steps.
 */
import process from "node:process";
import type { Device } from "../src/device/device.ts";
import { openCpuDevice } from "../src/kernels/cpu.ts";
import { ExpertShare } from "../src/model/expert-share.ts";
import { Model } from "../src/model/model.ts";
import { presetConfig } from "../src/model/presets.ts";
import { randomBatch } from "../src/model/test-support.ts";
import type { Communicator } from "../src/parallel/communicator/communicator.ts";
import type { RankContext } from "../src/parallel/communicator/rank-program.ts";
import { type Mesh, openMesh } from "../src/parallel/mesh.ts";
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
  /** Of each model after experts have moved, in turns. */
  readonly rounds: number;
}

/** In seconds: by the clock, and what the rank's thread computed meanwhile. */
export interface StepTime {
  readonly wall: number;
  readonly busy: number;
}

export interface BalanceReport {
  /** Of all ranks together. */
  readonly tokensPerStep: number;
  readonly staying: readonly StepTime[];
  readonly moved: readonly StepTime[];
  /** What moving took. */
  readonly pause: number;
  readonly bytesMoved: number;
  /** Of one batch, before and after experts moved. */
  readonly losses: readonly [before: number, after: number];
  readonly balances: readonly LayerBalance[];
}

/** The small preset with experts so wide that they are most of the work. */
const CONFIG = {
  ...presetConfig("small", 512),
  numLayers: 3,
  moeIntermediateDim: 1024,
  numMtpModules: 0,
};
const BATCH = { numSequences: 4, seqLength: 512 };
/** Experts that the gates prefer, of those that begin on rank 0 alone. */
const NUM_HOT = 6;
/** Whose load decides where experts go. */
const FIRST_STEPS = 2;
const OPTIONS = { mtpWeight: 0, balanceWeight: 0, zLoss: 0, computeGradients: true };

/** A model over the ranks, and what trains it. */
interface Side {
  takeStep(): void;
  loss(): number;
  /** Experts go to where the load of the last steps puts them. */
  follow(): readonly LayerBalance[];
}

export async function runRank(context: RankContext): Promise<BalanceReport> {
  const input = context.input as BalanceInput;
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  const mesh = openMesh(world, { pp: 1, ep: world.size, dp: 1 });
  const [still, following] = [openSide(device, mesh, input), openSide(device, mesh, input)];
  for (let step = 0; step < FIRST_STEPS; step++) {
    still.takeStep();
    following.takeStep();
  }
  const before = following.loss();
  const start = performance.now();
  const balances = following.follow();
  const pause = (performance.now() - start) / 1000;
  const after = following.loss();
  // What has moved is used for the first time.
  following.takeStep();
  const [staying, moved]: [StepTime[], StepTime[]] = [[], []];
  for (let round = 0; round < input.rounds; round++) {
    staying.push(timeStep(world, still));
    moved.push(timeStep(world, following));
  }
  const numMoves = balances.reduce((sum, layer) => sum + layer.numMoves, 0);
  return {
    tokensPerStep: world.size * BATCH.numSequences * BATCH.seqLength,
    staying,
    moved,
    pause,
    // A value and two moments of 4 bytes for each of three matrices.
    bytesMoved: numMoves * 3 * 4 * 3 * CONFIG.moeIntermediateDim * CONFIG.hiddenDim,
    losses: [before, after],
    balances,
  };
}

function timeStep(world: Communicator, side: Side): StepTime {
  world.barrier().wait();
  const start = performance.now();
  const used = process.threadCpuUsage();
  side.takeStep();
  const { user, system } = process.threadCpuUsage(used);
  world.barrier().wait();
  return { wall: (performance.now() - start) / 1000, busy: (user + system) / 1e6 };
}

function openSide(device: Device, mesh: Mesh, { recipe, numRedundant }: BalanceInput): Side {
  const { size, rank } = mesh.world;
  const experts = new ExpertShare(mesh.ep, CONFIG, { ranksPerHost: size, numRedundant });
  const precision = PRECISION_RECIPES[recipe];
  const model = new Model(device, CONFIG, { precision, seed: 1, experts });
  preferFew(model, experts);
  const scratch = new Arena(device.memory, "scratch");
  const copies = new ExpertCopies(experts, model, scratch);
  const sharding = { nearestCut: nearestRow, scratch, copies };
  const replicas = new ShardedReplicas(mesh, model.parameters, sharding);
  const hyper = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
  const optimizer = new AdamW(device, new Arena(device.memory, "moments"), replicas.part, hyper);
  const history = { kind: "window", numCounts: 1 } as const;
  const balance = { everySteps: 1, leastGain: 0.01, history };
  const places = { ...mesh, parts: replicas.expertParts };
  const balancing = { places, scratch, spreadValues: () => {} };
  const balancer = new ExpertBalancer(experts, model, balance, balancing);
  const batch = randomBatch(CONFIG, { ...BATCH, seed: rank });
  let load: readonly Int32Array[] = [];
  let numSteps = 0;
  return {
    takeStep: () => {
      model.parameters.zeroGradients();
      const { expertLoad } = model.forwardBackward(batch, { ...OPTIONS, lossScale: 1 / size });
      replicas.sumGradients();
      optimizer.update({ learningRate: 1e-4, gradientScale: 1, step: ++numSteps });
      replicas.gatherValues();
      model.parameters.refreshCompute();
      const all = replicas.sum(Float64Array.from(expertLoad.flatMap((layer) => [...layer])));
      load = expertLoad.map((layer, order) =>
        Int32Array.from(all.subarray(order * layer.length, (order + 1) * layer.length)),
      );
    },
    loss: () => {
      const losses = model.evaluate(batch);
      const own = losses.reduce((sum, value) => sum + value, 0) / losses.length;
      return replicas.sum(Float64Array.of(own))[0]! / size;
    },
    follow: () => balancer.follow(0, load, () => optimizer.state.map((state) => state.experts)),
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
