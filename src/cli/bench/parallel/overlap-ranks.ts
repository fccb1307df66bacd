/**
 * @file Two ranks that share experts, over a link as slow as they compute: how much of the exchange
 * an F&B pair leaves to wait for.
 *
 *     apart    a forward and a backward of one stage, one after the other, every wait in the open
 *     pair     the same two interleaved, as the executor of pipelines runs them
 *     exposed  (pair on the slow link − pair) ÷ (apart on the slow link − apart)
 *
 * The stage is four MoE blocks of the preset. The link's speed is chosen so that its operations
 * together take as long as `apart` takes on the machine's own.
 */
import { defined } from "../../../base/errors.ts";
import { Random } from "../../../base/random.ts";
import type { Device } from "../../../device/device.ts";
import { tickingDevice } from "../../../device/ticking-device.ts";
import { openCpuDevice } from "../../../kernels/cpu.ts";
import { ExpertShare } from "../../../model/expert-share.ts";
import { PartModel } from "../../../model/pipeline/part-model.ts";
import type { Communicator } from "../../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../../parallel/communicator/rank-program.ts";
import { runAlone, runInterleaved } from "../../../parallel/pipeline/executor/interleave.ts";
import { Arena } from "../../../tensor/arena.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import { tuneExchange } from "../../../training/data-parallel/tune-exchange.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../../training/recipe/recipes.ts";
import { resolveSettings, type TrainingSettings } from "../../../training/settings.ts";
import { SEED } from "../model-cases.ts";
import { DelayedCommunicator, type SlowLink } from "./delayed-communicator.ts";

const ROUNDS = 9;
const PAIRS = 4;
const CALIBRATIONS = 5;
const BLOCKS = { firstBlock: 2, endBlock: 6 };

export interface OverlapCase {
  readonly preset: "small";
  readonly recipe: RecipeName;
}

/** Milliseconds of a pair in each round, on the first rank. */
export interface OverlapTimes {
  readonly tokensPerPair: number;
  readonly shape: string;
  /** Of the exchange, both ways, in a pair. */
  readonly bytesPerPair: number;
  readonly apart: readonly number[];
  readonly pair: readonly number[];
  readonly slowApart: readonly number[];
  readonly slowPair: readonly number[];
}

export async function runRank(context: RankContext): Promise<OverlapTimes> {
  const settings = settingsOf(context.input as OverlapCase);
  await using opened = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(opened.memory);
  const device = tickingDevice(opened, () => world.tick());
  const link: SlowLink = { msPerByte: 0, numBytes: 0 };
  const { apart, pair } = makeWork(device, new DelayedCommunicator(world, link), settings);
  const time = (work: () => void): number => {
    world.barrier().wait();
    const start = performance.now();
    for (let count = 0; count < PAIRS; count++) work();
    world.barrier().wait();
    return (performance.now() - start) / PAIRS;
  };
  // The first rounds generate kernels and touch memory.
  for (const work of [apart, pair]) time(work);
  link.numBytes = 0;
  const computing = Math.min(...Array.from({ length: CALIBRATIONS }, () => time(apart)));
  const bytesPerPair = largest(device, world, link.numBytes / (CALIBRATIONS * PAIRS));
  const msPerByte = largest(device, world, computing) / bytesPerPair;
  const rounds = { apart: [], pair: [], slowApart: [], slowPair: [] };
  const times: Record<keyof typeof rounds, number[]> = rounds;
  for (let round = 0; round < ROUNDS; round++) {
    link.msPerByte = 0;
    times.apart.push(time(apart));
    times.pair.push(time(pair));
    link.msPerByte = msPerByte;
    times.slowApart.push(time(apart));
    times.slowPair.push(time(pair));
  }
  const { batch, data } = settings;
  const tokensPerPair = batch.microBatch * data.sequenceLength;
  const numBlocks = BLOCKS.endBlock - BLOCKS.firstBlock;
  const shape = `${numBlocks} layers, ${batch.microBatch}×${data.sequenceLength}`;
  return { ...times, tokensPerPair, shape, bytesPerPair };
}

function settingsOf({ preset, recipe }: OverlapCase): TrainingSettings {
  return resolveSettings({
    preset,
    recipe: PRECISION_RECIPES[recipe],
    assignments: ["batch.microBatch=2", "data.sequenceLength=256"],
  });
}

/** Collective: the largest of all ranks' numbers. */
function largest(device: Device, world: Communicator, value: number): number {
  const tensor = new Arena(device.memory, "a number").allocate("f64", [1]);
  view(tensor)[0] = value;
  world.allReduce(tensor, tensor, "max").wait();
  return view(tensor)[0]!;
}

function makeWork(device: Device, ranks: Communicator, settings: TrainingSettings) {
  const { model: config, recipe: precision, seed, batch, data } = settings;
  const experts = new ExpertShare(ranks, config, { ranksPerHost: ranks.size });
  const arena = new Arena(device.memory, "streams");
  tuneExchange(experts.exchange, settings, arena);
  const part = { hasEmbedding: false, ...BLOCKS, hasExit: false };
  const parts = new Map([[0, part]]);
  const options = { precision, seed, parts, copies: new Set<string>(), experts };
  const model = new PartModel(device, config, options);
  const stage = defined(model.stages.get(0), "the stage");
  const numTokens = batch.microBatch * data.sequenceLength;
  const width = data.sequenceLength + 1 + config.numMtpModules;
  const one = {
    tokens: new Int32Array(batch.microBatch * width),
    numSequences: batch.microBatch,
    seqLength: data.sequenceLength,
  };
  const stream = (name: string): Tensor<"f32"> => {
    const tensor = arena.allocate("f32", [numTokens, config.hiddenDim]);
    const random = new Random(SEED + ranks.rank, name);
    view(tensor).set(Float32Array.from({ length: view(tensor).length }, () => random.normal()));
    return tensor;
  };
  const [input, output, dOutput, dInput] = ["x", "y", "dy", "dx"].map(stream);
  const step = { mtpWeight: 0, balanceWeight: 1e-4, zLoss: 0, computeGradients: true };
  model.begin({ batches: [one, one], options: step });
  let next = 0;
  const forward = () => stage.forward({ microBatch: next, input: input!, output: output! });
  const backward = (microBatch: number) => {
    const call = { microBatch, input: input!, dOutput: dOutput!, dInput: dInput! };
    return stage.backwardInput({ ...call, isFull: true });
  };
  const weightsOf = (microBatch: number) => ({
    fill: () => stage.fillWait(microBatch),
    finish: () => stage.backwardWeight(microBatch),
  });
  runAlone(forward(), null);
  return {
    apart: () => {
      next = 1 - next;
      runAlone(forward(), null);
      runAlone(backward(1 - next), null);
      stage.backwardWeight(1 - next);
    },
    pair: () => {
      next = 1 - next;
      runInterleaved(backward(1 - next), forward(), weightsOf(1 - next));
    },
  };
}
