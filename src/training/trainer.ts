/**
 * @file The trainer: one optimizer step after another, from batches to changed parameters. Knows no
 * files.
 *
 *     gradients ← Σ micro-batches     check     clip     optimizer     routing biases     average
 *
 * What a step does depends on the settings, the plan and the trainer's state alone, never on the
 * clock or on what the machine is doing: two trainers with equal state go on to the same bits.
 * run/train-run.ts gives it a run folder.
 */
import { assert } from "../base/errors.ts";
import { divExact } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import type { StepOptions, StepResult, TrainableModel } from "../model/model-types.ts";
import { Arena } from "../tensor/arena.ts";
import { type Position, progressAt, type RunPlan, sequencesAt } from "./budget.ts";
import type { BatchLoader, LoaderState } from "./data/batches.ts";
import { ParameterAverage } from "./ema/ema.ts";
import {
  EMPTY_TREND,
  extendTrend,
  isSpike,
  type LossTrend,
  nonFiniteGradientError,
  nonFiniteLossError,
} from "./health.ts";
import { AdamW, type MomentOptions } from "./optimizer/adamw.ts";
import { clipScale, gradientNorm } from "./optimizer/clip.ts";
import { Muon } from "./optimizer/muon.ts";
import type { Optimizer } from "./optimizer/optimizer.ts";
import { addExpertLoads, extendRecentLoads, maxVio, updateRouterBiases } from "./router-bias.ts";
import {
  type LearningRateSchedule,
  learningRateAt,
  makeSchedule,
  switchedValueAt,
} from "./schedule.ts";
import type { TrainingSettings } from "./settings.ts";

/** What a step was; `step` counts from 0. */
export interface StepOutcome {
  readonly step: number;
  /** Consumed up to and with this step. */
  readonly tokens: number;
  readonly stepTokens: number;
  readonly loss: number;
  readonly mtpLosses: readonly number[];
  readonly balanceLoss: number;
  readonly learningRate: number;
  readonly gradNorm: number;
  /** Per MoE layer: of this step's load, and of the mean load of recent steps. */
  readonly maxVio: readonly number[];
  readonly recentMaxVio: readonly number[];
  readonly expertLoad: readonly Int32Array[];
  readonly isSpike: boolean;
}

/**
 * The trainer's own state; plain JSON. Tensors are beside it: parameters, moments, average, biases.
 */
export interface TrainerState {
  /** Steps taken. */
  readonly step: number;
  readonly tokens: number;
  readonly loader: LoaderState;
  readonly trend: LossTrend;
  /** Mean load of each expert over recent steps, per MoE layer. */
  readonly recentLoads: readonly (readonly number[])[];
}

export interface TrainerParts {
  readonly device: Device;
  readonly model: TrainableModel;
  readonly loader: BatchLoader;
  readonly settings: TrainingSettings;
}

export class Trainer implements AsyncDisposable {
  readonly model: TrainableModel;
  readonly optimizer: Optimizer;
  /** The moving average of the parameters, if the settings want one. */
  readonly average: ParameterAverage | undefined;
  /** The length of the run, once it is known; decides the progress that schedules see. */
  plan: RunPlan | undefined;
  readonly #device: Device;
  readonly #loader: BatchLoader;
  readonly #settings: TrainingSettings;
  readonly #schedule: LearningRateSchedule;
  readonly #scratch: Arena;
  #position: Position = { step: 0, tokens: 0 };
  #trend: LossTrend = EMPTY_TREND;
  #recentLoads: readonly (readonly number[])[] = [];

  private constructor(
    parts: TrainerParts,
    optimizer: Optimizer,
    average: ParameterAverage | undefined,
    scratch: Arena,
  ) {
    this.model = parts.model;
    this.optimizer = optimizer;
    this.average = average;
    this.#device = parts.device;
    this.#loader = parts.loader;
    this.#settings = parts.settings;
    this.#schedule = makeSchedule(parts.settings.learningRate);
    this.#scratch = scratch;
  }

  /** A trainer at step 0 of the model's present parameters. */
  static async start(parts: TrainerParts): Promise<Trainer> {
    const { device, model, settings } = parts;
    const { parameters } = model;
    const arena = new Arena(device.memory, "optimizer");
    const scratch = new Arena(device.memory, "optimizer scratch");
    const optimizer =
      settings.optimizer.name === "muon"
        ? new Muon(device, { state: arena, scratch }, model, settings.optimizer)
        : new AdamW(device, arena, parameters, settings.optimizer, momentsOf(settings));
    const { decay } = settings.average;
    const average =
      decay > 0 ? await ParameterAverage.start(parameters, arena, { decay }) : undefined;
    return new Trainer(parts, optimizer, average, scratch);
  }

  /** Steps taken and tokens consumed. */
  get position(): Position {
    return this.#position;
  }

  /** Waits for the average: after this, the tensors are those of `state.step`. */
  get state(): TrainerState {
    this.average?.finish();
    return {
      ...this.#position,
      loader: this.#loader.state,
      trend: this.#trend,
      recentLoads: this.#recentLoads,
    };
  }

  /** Go on from `state`; the tensors were filled by the caller. */
  restore(state: TrainerState): void {
    this.#loader.restore(state.loader);
    this.#position = { step: state.step, tokens: state.tokens };
    this.#trend = state.trend;
    this.#recentLoads = state.recentLoads;
    this.model.parameters.refreshCompute();
  }

  /**
   * Take one step; throws `training.nonfinite` before anything has changed but the gradients and
   * the loader.
   */
  step(): StepOutcome {
    const { model } = this;
    const { step, tokens } = this.#position;
    const progress = progressAt(this.plan, this.#position);
    const numSequences = sequencesAt(this.#settings.batch, tokens);
    model.parameters.zeroGradients();
    const result = this.#accumulateGradients(numSequences, progress);
    const gradNorm = this.#checkedNorm(result.loss);
    const learningRate = learningRateAt(this.#schedule, { step, progress });
    this.average?.finish();
    this.optimizer.update({
      learningRate,
      gradientScale: clipScale(gradNorm, this.#settings.optimizer.clipNorm),
      step: step + 1,
    });
    model.parameters.refreshCompute();
    const speed = switchedValueAt(this.#settings.biasSpeed, progress);
    updateRouterBiases(model, result.expertLoad, speed);
    this.average?.begin(step + 1);
    const spikes = isSpike(this.#trend, result.loss, this.#settings.health.spikeDeviations);
    this.#trend = extendTrend(this.#trend, result.loss);
    this.#recentLoads = extendRecentLoads(this.#recentLoads, result.expertLoad);
    const stepTokens = numSequences * this.#settings.data.sequenceLength;
    this.#position = { step: step + 1, tokens: tokens + stepTokens };
    return {
      step,
      tokens: tokens + stepTokens,
      stepTokens,
      loss: result.loss,
      mtpLosses: result.mtpLosses,
      balanceLoss: result.balanceLoss,
      learningRate,
      gradNorm,
      maxVio: result.expertLoad.map(maxVio),
      recentMaxVio: this.#recentLoads.map(maxVio),
      expertLoad: result.expertLoad,
      isSpike: spikes,
    };
  }

  /** The global gradient norm, which is finite. */
  #checkedNorm(loss: number): number {
    const gradNorm = gradientNorm(this.#device, this.#scratch, this.model.parameters);
    if (!Number.isFinite(gradNorm)) {
      throw nonFiniteGradientError(this.model, this.#position.step, { loss, gradNorm });
    }
    return gradNorm;
  }

  /**
   * Gradients of the mean over all sequences, added up over micro-batches; losses are their means.
   */
  #accumulateGradients(numSequences: number, progress: number): StepResult {
    const { loss, data, batch } = this.#settings;
    const numMicroBatches = divExact(numSequences, batch.microBatch);
    const options: StepOptions = {
      mtpWeight: switchedValueAt(loss.mtpWeight, progress),
      balanceWeight: loss.balanceWeight,
      zLoss: loss.zLoss,
      computeGradients: true,
      lossScale: 1 / numMicroBatches,
    };
    const results: StepResult[] = [];
    for (let index = 0; index < numMicroBatches; index++) {
      const { tokens } = this.#loader.next(batch.microBatch);
      const { microBatch: sequences } = batch;
      const part = { tokens, numSequences: sequences, seqLength: data.sequenceLength };
      const result = this.model.forwardBackward(part, options);
      const broken = [result.loss, ...result.mtpLosses].find((value) => !Number.isFinite(value));
      if (broken !== undefined) {
        throw nonFiniteLossError(this.model, this.#position.step, broken, part);
      }
      results.push(result);
    }
    return meanResult(results);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.average?.[Symbol.asyncDispose]();
  }
}

/** The moments' format as the recipe has it. */
function momentsOf({ recipe, seed }: TrainingSettings): MomentOptions {
  if (recipe.tensors.moment.format !== "bf16") return { format: "f32", seed };
  return { format: recipe.stochasticRounding ? "bf16.stochastic" : "bf16", seed };
}

/** Means of the losses, sums of the loads. */
function meanResult(results: readonly StepResult[]): StepResult {
  const [first] = results;
  assert(first !== undefined, "a step has at least one micro-batch");
  const mean = (read: (result: StepResult) => number): number =>
    results.reduce((sum, result) => sum + read(result), 0) / results.length;
  const expertLoad = results.reduce<readonly Int32Array[] | undefined>(
    (total, result) => addExpertLoads(total, result.expertLoad),
    undefined,
  );
  return {
    loss: mean((result) => result.loss),
    mtpLosses: first.mtpLosses.map((_, index) => mean((result) => result.mtpLosses[index]!)),
    balanceLoss: mean((result) => result.balanceLoss),
    objective: mean((result) => result.objective),
    expertLoad: expertLoad ?? [],
  };
}
