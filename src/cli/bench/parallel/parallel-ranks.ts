/**
 * @file Two ranks of one thread each that take training steps together, and the first one alone:
 * turn by turn, so that whatever else the machine does falls on both.
 *
 *     step      a whole step of the trainer, optimizer included: one rank, two by DualPipe, both
 *               at once but each by itself, which is what the machine can give
 *     executor  gradients alone on one rank: micro-batches in a row, then through a schedule
 *
 * The batch is the one that training over two ranks begins with, in the same micro-batches. The
 * moving average is left out: it has a thread of its own, which one rank would not have to share
 * the machine with.
 */
import { defined } from "../../../base/errors.ts";
import { Random } from "../../../base/random.ts";
import type { Device } from "../../../device/device.ts";
import { tickingDevice } from "../../../device/ticking-device.ts";
import { openCpuDevice } from "../../../kernels/cpu.ts";
import { Model } from "../../../model/model.ts";
import { PipelineModel } from "../../../model/pipeline/pipeline-model.ts";
import type { Communicator } from "../../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../../parallel/communicator/rank-program.ts";
import { wholeShare } from "../../../training/model-share.ts";
import { fitBatches } from "../../../training/pipeline/fit-batches.ts";
import { RankTrainer } from "../../../training/pipeline/rank-trainer.ts";
import type { TrainingLayout } from "../../../training/pipeline/training-layout.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../../training/recipe/recipes.ts";
import { resolveSettings, type TrainingSettings } from "../../../training/settings.ts";
import { type BatchSource, Trainer } from "../../../training/trainer.ts";
import { SEED, VOCAB_SIZE } from "../model-cases.ts";

const ROUNDS = 5;
const LAYOUT: TrainingLayout = {
  mesh: { pp: 2, ep: 1, dp: 1 },
  schedule: "dualpipe",
  ranksPerHost: 2,
};

export interface ParallelCase {
  readonly preset: "tiny" | "small";
  readonly recipe: RecipeName;
}

/** Seconds of each round, on the first rank. */
export interface ParallelTimes {
  readonly tokensPerStep: number;
  readonly shape: string;
  readonly alone: readonly number[];
  readonly both: readonly number[];
  readonly together: readonly number[];
  readonly bare: readonly number[];
  readonly executed: readonly number[];
}

export async function runRank(context: RankContext): Promise<ParallelTimes> {
  const settings = settingsOf(context.input as ParallelCase);
  await using opened = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(opened.memory);
  const device = tickingDevice(opened, () => world.tick());
  const own = defined(world.split(world.rank, 0, "alone") ?? undefined, "a rank by itself");
  const step = await makeSteps(device, world, settings);
  const pass = makePasses(device, own, settings);
  const times = { alone: [], both: [], together: [], bare: [], executed: [] };
  const rounds: Record<keyof typeof times, number[]> = times;
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [name, work, isShared] of [
      ["alone", step.alone, false],
      ["both", step.alone, true],
      ["together", step.together, true],
      ["bare", pass.bare, false],
      ["executed", pass.executed, false],
    ] as const) {
      world.barrier().wait();
      const start = performance.now();
      if (isShared || world.rank === 0) work();
      if (isShared) world.barrier().wait();
      // The first round generates kernels and touches memory.
      if (round > 0) rounds[name].push((performance.now() - start) / 1000);
    }
  }
  const { batch, data, model } = settings;
  return {
    ...rounds,
    tokensPerStep: batch.sequences * data.sequenceLength,
    shape:
      `${model.numLayers} layers, ${batch.sequences / batch.microBatch} × ` +
      `${batch.microBatch}×${data.sequenceLength}`,
  };
}

/** Of the preset's first steps, before its batches grow. */
function settingsOf({ preset, recipe }: ParallelCase): TrainingSettings {
  const resolve = (assignments: readonly string[]): TrainingSettings =>
    resolveSettings({ preset, recipe: PRECISION_RECIPES[recipe], assignments });
  const { rampFrom } = resolve([]).batch;
  const first = [`batch.sequences=${rampFrom}`, "batch.rampTokens=0", "average.decay=0"];
  return fitBatches(resolve(first), LAYOUT);
}

/** Always the same tokens. */
function randomBatches({ data, model }: TrainingSettings): BatchSource {
  const width = data.sequenceLength + 1 + model.numMtpModules;
  return {
    next: (numSequences) => {
      const random = new Random(SEED, "bench tokens");
      const tokens = Int32Array.from({ length: numSequences * width }, () =>
        random.below(VOCAB_SIZE),
      );
      return { tokens, numSequences, width };
    },
    restore: () => {},
    state: { epoch: 0, place: 0, offset: 0, numSpans: 0 },
  };
}

async function makeSteps(device: Device, world: Communicator, settings: TrainingSettings) {
  const loader = randomBatches(settings);
  const { model: config, recipe: precision, seed } = settings;
  const model = new Model(device, config, { precision, seed });
  const alone = await Trainer.start({ device, model, loader, settings });
  const rank = await RankTrainer.start({
    device,
    world,
    settings,
    loader,
    layout: LAYOUT,
    suspect: () => null,
  });
  return { alone: () => alone.step(), together: () => rank.trainer.step() };
}

function makePasses(device: Device, own: Communicator, settings: TrainingSettings) {
  const { model: config, recipe: precision, seed, batch, data } = settings;
  const numMicroBatches = batch.sequences / batch.microBatch;
  const loader = randomBatches(settings);
  const batches = Array.from({ length: numMicroBatches }, () => {
    const { tokens } = loader.next(batch.microBatch);
    return { tokens, numSequences: batch.microBatch, seqLength: data.sequenceLength };
  });
  const options = {
    mtpWeight: 0.3,
    balanceWeight: 1e-4,
    zLoss: 0,
    computeGradients: true,
    lossScale: 1 / numMicroBatches,
  };
  const whole = wholeShare(new Model(device, config, { precision, seed }), {
    tick: () => own.tick(),
    inStep: false,
  });
  const shape = { kind: "1f1b", numStagesPerRank: 1 } as const;
  const pipeline = new PipelineModel(device, own, config, { precision, seed, shape });
  return {
    bare: () => whole.computeGradients(batches, options),
    executed: () => pipeline.forwardBackward(batches, options),
  };
}
