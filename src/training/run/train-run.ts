/**
 * @file A training run from beginning to end: data, model, trainer and run folder put together.
 *
 * session.ts has the loop. A resumed run must have the seed, model, recipe and data of the one
 * that was begun; everything else may be changed, and counts from the step it resumes at.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { Model } from "../../model/model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { BatchLoader } from "../data/batches.ts";
import { fitBatches } from "../pipeline/fit-batches.ts";
import { follow } from "../pipeline/following.ts";
import { LedTraining, leading } from "../pipeline/leading.ts";
import { checkLayout, type TrainingLayout } from "../pipeline/training-layout.ts";
import { makeLoader, openTrainingText, type PreparedData, prepareData } from "../prepare.ts";
import { budgetOf, resolveSettings, type TrainingSettings } from "../settings.ts";
import { Trainer } from "../trainer.ts";
import type { ValidationResult } from "../validation.ts";
import { readTokenizer } from "./checkpoint.ts";
import { readingNewest } from "./damaged-checkpoint.ts";
import type { TrainingObserver } from "./observer.ts";
import { releaseHeap } from "./release-heap.ts";
import { listCheckpoints, RunFolder, readRunConfig, refuseTakenFolder } from "./run-folder.ts";
import { Session } from "./session.ts";
import { LocalTraining, type Training } from "./training.ts";

/** What is asked to write samples: a model as it is after `step` steps. */
export interface SampleContext {
  readonly step: number;
  readonly model: Model;
  readonly tokenizer: Tokenizer;
  readonly prompts: readonly string[];
  readonly tokensMax: number;
}

export interface Sample {
  readonly prompt: string;
  readonly text: string;
}

export interface TrainRunOptions {
  readonly device: Device;
  /** The run folder. */
  readonly out: string;
  readonly settings: TrainingSettings;
  /** Carry on from the last checkpoint of `out`. */
  readonly resume: boolean;
  readonly observer?: TrainingObserver;
  /** Aborted: finish the step, write a checkpoint, return. */
  readonly signal?: Pick<AbortSignal, "aborted">;
  /** Generation lives above this floor. */
  readonly writeSamples?: (context: SampleContext) => Promise<readonly Sample[]>;
  /** FLOP/s that matrix products reach on this device, for MFU. */
  readonly peakFlops?: number;
}

export interface TrainRunSummary {
  readonly run: string;
  /** The last checkpoint. */
  readonly checkpoint: string;
  readonly steps: number;
  readonly tokens: number;
  /** Of all held-out text; undefined if there is none, or if the run was interrupted. */
  readonly validation: ValidationResult | undefined;
  /** The same with the averaged parameters. */
  readonly averageValidation: ValidationResult | undefined;
  /** Training time of all sessions. */
  readonly seconds: number;
  /** Over this session's steps; 0 without any. */
  readonly tokensPerSecond: number;
  readonly wasInterrupted: boolean;
  /** How often and how long steps waited for the average. */
  readonly averageWaits: number;
  readonly averageWaitedSeconds: number;
}

/** Begin or resume a run and bring it to its end, in this process. */
export async function trainRun(options: TrainRunOptions): Promise<TrainRunSummary> {
  return await runSession(options, async ({ settings }, loader) => {
    const { device } = options;
    const { model: config, recipe, seed } = settings;
    const model = new Model(device, config, { precision: recipe, seed });
    return new LocalTraining(await Trainer.start({ device, model, loader, settings }), model);
  });
}

export interface LeadRunOptions extends TrainRunOptions, RankRun {
  /** Has the whole model: for validation, samples and checkpoints. */
  readonly wholeDevice: Device;
  /** Of all ranks. */
  readonly layout: TrainingLayout;
}

/** A rank of a run; `device` has what it trains. */
export interface RankRun {
  readonly device: Device;
  /** All ranks of the run. */
  readonly world: Communicator;
}

/** Begin or resume a run over ranks; the others are in `followRun`. */
export async function leadRun(options: LeadRunOptions): Promise<TrainRunSummary> {
  const { device, world, layout } = options;
  const wholeDevice = tickingDevice(options.wholeDevice, () => world.tick());
  return await leading(device, world, async (channel) => {
    checkLayout(options.settings, layout);
    const settings = fitBatches(options.settings, layout);
    return await runSession({ ...options, settings }, async (data, loader) =>
      LedTraining.start({ ...options, wholeDevice, channel, settings: data.settings, loader }),
    );
  });
}

/** A rank of a run that another one leads, until it is over. */
export async function followRun({ device, world }: RankRun): Promise<void> {
  await follow(device, world);
}

async function runSession(
  options: Omit<TrainRunOptions, "device">,
  start: (data: PreparedData, loader: BatchLoader) => Promise<Training>,
): Promise<TrainRunSummary> {
  const { out, settings, resume, observer } = options;
  if (budgetOf(settings) === undefined) {
    throw new OperationalError(
      "config.budget",
      "the run has no end; give it --steps, --tokens or --minutes",
    );
  }
  if (resume) refuseOtherRun(out, settings);
  else refuseTakenFolder(out);
  const onProgress: TrainingObserver["onPrepare"] = (...told) => observer?.onPrepare?.(...told);
  // Before there is a folder: a path that was mistyped leaves nothing behind.
  const corpus = await openTrainingText(settings, onProgress);
  using folder = resume ? RunFolder.open(out) : RunFolder.create(out, settings);
  const checkpoint = listCheckpoints(out).at(-1)?.path;
  using data = await prepareData({
    settings,
    corpus,
    storeFolder: folder.storePath,
    ...(checkpoint === undefined
      ? {}
      : { tokenizer: readingNewest(out, () => readTokenizer(checkpoint)) }),
    onProgress,
  });
  releaseHeap();
  await using training = await start(data, makeLoader(data));
  return await new Session({ options, folder, data, training }).run(checkpoint);
}

/** What makes a run the same run. */
const FIXED_SECTIONS = ["seed", "model", "recipe", "data"] as const;

/** The settings of a run folder, complete. */
function settingsOfRun(out: string): TrainingSettings {
  const changes = { value: readRunConfig(out), origin: `${out}/config.json` };
  return resolveSettings({ preset: "tiny", changes });
}

function refuseOtherRun(out: string, settings: TrainingSettings): void {
  const begun = withoutTokens(settingsOfRun(out));
  const present = withoutTokens(settings);
  for (const section of FIXED_SECTIONS) {
    if (JSON.stringify(begun[section]) !== JSON.stringify(present[section])) {
      throw new OperationalError(
        "run.settings",
        `${out} was begun with another "${section}"; resume with that of its config.json, or ` +
          "begin a new run",
        { section },
      );
    }
  }
}

/** The tokenizer decides these once it is learned. */
function withoutTokens(settings: TrainingSettings): TrainingSettings {
  const ids = { bosTokenId: null, eosTokenId: null, padTokenId: null };
  return { ...settings, model: { ...settings.model, vocabSize: 0, ...ids } };
}
