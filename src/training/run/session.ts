/**
 * @file One sitting at a run: steps until its plan is fulfilled or its signal given, with
 * everything that belongs to the clock and to files: metrics, validations, samples, checkpoints.
 *
 * A checkpoint of step 0 is written before the first step, so that a run that has begun can always
 * be resumed. The clock decides when a checkpoint is due and, once, how long a run in minutes will
 * be; it changes no number of a step.
 */

import { defined } from "../../base/errors.ts";
import { formatTrace } from "../../parallel/pipeline/trace.ts";
import { describeBudget, planFrom, type RunPlan, SpeedWatch } from "../budget.ts";
import { flopsPerToken } from "../flops.ts";
import { type StepRecord, toScalars } from "../metrics/record.ts";
import type { PreparedData } from "../prepare.ts";
import { budgetOf } from "../settings.ts";
import type { StepOutcome } from "../trainer.ts";
import { type ValidationResult, validate } from "../validation.ts";
import { writeCheckpoint } from "./checkpoint.ts";
import { problemOfWeights, readingNewest } from "./damaged-checkpoint.ts";
import type { EvaluationKind, TrainingObserver } from "./observer.ts";
import type { RunFolder } from "./run-folder.ts";
import type { TrainRunOptions, TrainRunSummary } from "./train-run.ts";
import type { Training } from "./training.ts";
import { readTrainingState } from "./training-state.ts";

type SessionOptions = Omit<TrainRunOptions, "device">;

export interface SessionParts {
  readonly options: SessionOptions;
  readonly folder: RunFolder;
  readonly data: PreparedData;
  readonly training: Training;
}

/** Time and work of this session. */
interface Tally {
  /** Of earlier sessions. */
  secondsBefore: number;
  startMs: number;
  /** Up to which the speed was watched. */
  watchedSeconds: number;
  lastCheckpointMs: number;
  lastCheckpointStep: number;
  stepTokens: number;
  stepSeconds: number;
}

export class Session {
  readonly #options: SessionOptions;
  readonly #folder: RunFolder;
  readonly #data: PreparedData;
  readonly #training: Training;
  readonly #observer: TrainingObserver;
  readonly #flopsPerToken: number;
  /** Until the length of a run in minutes is known. */
  #watch: SpeedWatch | undefined;
  readonly #tally: Tally = {
    secondsBefore: 0,
    startMs: performance.now(),
    watchedSeconds: 0,
    lastCheckpointMs: performance.now(),
    lastCheckpointStep: -1,
    stepTokens: 0,
    stepSeconds: 0,
  };

  constructor({ options, folder, data, training }: SessionParts) {
    this.#options = options;
    this.#folder = folder;
    this.#data = data;
    this.#training = training;
    this.#observer = options.observer ?? {};
    const { model, data: dataSettings } = data.settings;
    const counted = { attention: "causal", withMtp: true } as const;
    this.#flopsPerToken = flopsPerToken(model, dataSettings.sequenceLength, counted);
  }

  /** Train from `checkpoint`, or from the beginning if there is none. */
  async run(checkpoint: string | undefined): Promise<TrainRunSummary> {
    this.#begin(checkpoint);
    if (checkpoint !== undefined && this.#isDone) this.#warnOfSpentBudget();
    while (!this.#isDone && !this.#isInterrupted) {
      await this.#step();
      // Signals and progress lines get their turn between steps.
      await new Promise((resolve) => setImmediate(resolve));
    }
    return this.#end();
  }

  get #isDone(): boolean {
    const { plan, position } = this.#training;
    return this.#watch === undefined && plan !== undefined && position.step >= plan.totalSteps;
  }

  get #isInterrupted(): boolean {
    return this.#options.signal?.aborted === true;
  }

  get #seconds(): number {
    return this.#tally.secondsBefore + (performance.now() - this.#tally.startMs) / 1000;
  }

  #begin(checkpoint: string | undefined): void {
    const { settings, tokenizer, report, train } = this.#data;
    if (checkpoint !== undefined) {
      const read = () => readTrainingState(checkpoint, this.#training, settings.model).seconds;
      this.#tally.secondsBefore = readingNewest(this.#folder.path, read);
      this.#tally.lastCheckpointStep = this.#training.position.step;
    }
    const { step } = this.#training.position;
    this.#folder.writeConfig(settings);
    this.#folder.beginSeries(step);
    const trainTokens = train.numTokens;
    const { vocabSize } = tokenizer;
    this.#observer.onStart?.({ settings, vocabSize, report, trainTokens, step });
    this.#choosePlan();
    this.#planOnceMeasured(this.#tally.secondsBefore);
    if (checkpoint === undefined) this.#writeCheckpoint();
    else this.#mendWeights(checkpoint);
    this.#tally.startMs = performance.now();
    this.#tally.watchedSeconds = this.#tally.secondsBefore;
    this.#tally.lastCheckpointMs = performance.now();
  }

  /** What is read of a checkpoint has been; what others would read of it may be damaged. */
  #mendWeights(checkpoint: string): void {
    const problem = problemOfWeights(checkpoint);
    if (problem === undefined) return;
    this.#observer.onWarning?.(
      `the weights of ${checkpoint} are damaged (${problem}); the run goes on from the training ` +
        "state beside them, which is whole, and writes this checkpoint anew",
    );
    this.#tally.lastCheckpointStep = -1;
    this.#writeCheckpoint();
  }

  /** The plan already made for this budget; else a new one, at once or when the speed is known. */
  #choosePlan(): void {
    const { settings } = this.#data;
    const budget = defined(budgetOf(settings), "the budget");
    const stored = this.#folder.readPlan();
    if (stored !== undefined && JSON.stringify(stored.budget) === JSON.stringify(budget)) {
      this.#training.plan = stored.plan;
      this.#observer.onPlan?.(stored.plan);
    } else if ("minutes" in budget) {
      const { tokens } = this.#training.position;
      const earlier = { seconds: this.#tally.secondsBefore, tokens };
      this.#watch = new SpeedWatch(budget.minutes, earlier);
    } else {
      const start = { step: 0, tokens: 0 };
      this.#keepPlan(planFrom(start, budget, settings.batch, settings.data.sequenceLength));
    }
  }

  #keepPlan(plan: RunPlan): void {
    const budget = defined(budgetOf(this.#data.settings), "the budget");
    this.#folder.writePlan({ budget, plan });
    this.#training.plan = plan;
    this.#observer.onPlan?.(plan);
  }

  async #step(): Promise<void> {
    const startMs = performance.now();
    const outcome = this.#training.step();
    const stepSeconds = (performance.now() - startMs) / 1000;
    this.#tally.stepSeconds += stepSeconds;
    this.#tally.stepTokens += outcome.stepTokens;
    if (outcome.isSpike) this.#warnOfSpike(outcome);
    const validation = this.#isDue(this.#data.settings.evaluation.everySteps)
      ? this.#evaluate("part")
      : undefined;
    const record = this.#record(outcome, stepSeconds, validation);
    this.#folder.appendMetrics(record, toScalars(record, this.#training.moeLayerIndices));
    this.#watchSpeed(outcome.stepTokens);
    const { plan } = this.#training;
    this.#observer.onStep?.(record, { plan, secondsLeft: this.#secondsLeft(plan) });
    if (this.#isDue(this.#data.settings.samples.everySteps)) await this.#writeSamples();
    if (this.#isCheckpointDue()) this.#writeCheckpoint();
  }

  /** Whether the step just taken is one of every `everySteps`; 0 is never. */
  #isDue(everySteps: number): boolean {
    return everySteps > 0 && this.#training.position.step % everySteps === 0;
  }

  #isCheckpointDue(): boolean {
    const { everySteps, everyMinutes } = this.#data.settings.checkpoint;
    const minutes = (performance.now() - this.#tally.lastCheckpointMs) / 60_000;
    return this.#isDue(everySteps) || (everyMinutes > 0 && minutes >= everyMinutes);
  }

  /** The speed is watched from step to step, with all that lies between. */
  #watchSpeed(stepTokens: number): void {
    if (this.#watch === undefined) return;
    const seconds = this.#seconds;
    this.#watch.observe(seconds - this.#tally.watchedSeconds, stepTokens);
    this.#tally.watchedSeconds = seconds;
    this.#planOnceMeasured(seconds);
  }

  /** Fix the length of a run in minutes if its speed is known, or its minutes are over. */
  #planOnceMeasured(seconds: number): void {
    const tokensLeft = this.#watch?.tokensLeft(seconds);
    if (tokensLeft === undefined) return;
    const { position } = this.#training;
    const { batch, data } = this.#data.settings;
    const limit = { tokens: position.tokens + tokensLeft };
    this.#watch = undefined;
    this.#keepPlan(planFrom(position, limit, batch, data.sequenceLength));
  }

  #secondsLeft(plan: RunPlan | undefined): number | undefined {
    if (plan === undefined || this.#watch !== undefined) return undefined;
    const tokens = Math.max(0, plan.totalTokens - this.#training.position.tokens);
    return tokens / this.#tokensPerSecond;
  }

  get #tokensPerSecond(): number {
    const { stepTokens, stepSeconds } = this.#tally;
    return stepSeconds > 0 ? stepTokens / stepSeconds : 0;
  }

  #record(
    outcome: StepOutcome,
    stepSeconds: number,
    validation: ValidationResult | undefined,
  ): StepRecord {
    const tokensPerSecond = outcome.stepTokens / stepSeconds;
    const { peakFlops } = this.#options;
    return {
      step: outcome.step,
      tokens: outcome.tokens,
      loss: outcome.loss,
      mtpLosses: outcome.mtpLosses,
      balanceLoss: outcome.balanceLoss,
      learningRate: outcome.learningRate,
      gradNorm: outcome.gradNorm,
      maxVio: outcome.maxVio,
      recentMaxVio: outcome.recentMaxVio,
      expertLoad: outcome.expertLoad.map((load) => [...load]),
      ...(outcome.exchanged === null ? {} : { exchangedBytes: outcome.exchanged }),
      ...(outcome.balances.length === 0 ? {} : { rebalance: worstOf(outcome.balances) }),
      tokensPerSecond,
      mfu: peakFlops === undefined ? null : (this.#flopsPerToken * tokensPerSecond) / peakFlops,
      seconds: this.#seconds,
      ...(validation === undefined ? {} : { validationBitsPerByte: validation.bitsPerByte }),
    };
  }

  #warnOfSpentBudget(): void {
    const budget = defined(budgetOf(this.#data.settings), "the budget");
    this.#observer.onWarning?.(
      `the run is complete: its budget of ${describeBudget(budget)} is used up; ` +
        "resume with a larger one",
    );
  }

  #warnOfSpike(outcome: StepOutcome): void {
    const { tensor, layer, finding } = this.#training.longestGradient;
    const where = layer === "" ? tensor : `${tensor} (${layer})`;
    this.#observer.onWarning?.(
      `step ${outcome.step}: the loss jumped to ${outcome.loss.toFixed(4)}; ` +
        `${where} has ${finding}`,
    );
  }

  #evaluate(kind: EvaluationKind, model = this.#training.wholeModel()) {
    const { settings, heldOut, tokenizer } = this.#data;
    const { position } = this.#training;
    const result = validate(model, heldOut, tokenizer, {
      sequenceLength: settings.data.sequenceLength,
      microBatch: settings.batch.microBatch,
      ...(kind === "part" ? { sequencesMax: settings.evaluation.sequencesMax } : {}),
    });
    if (result !== undefined) this.#observer.onEvaluation?.(position.step, result, kind);
    return result;
  }

  /** Validation with the averaged parameters in place of the last ones. */
  #evaluateAverage(): ValidationResult | undefined {
    if (!this.#training.hasAverage) return undefined;
    return this.#training.withAverage((model) => this.#evaluate("average", model));
  }

  async #writeSamples(): Promise<void> {
    const { writeSamples } = this.#options;
    const { settings, tokenizer } = this.#data;
    const { prompts, tokensMax } = settings.samples;
    if (writeSamples === undefined || prompts.length === 0) return;
    const { position } = this.#training;
    // The line belongs to the step just taken, as its metrics do.
    const step = position.step - 1;
    const model = this.#training.wholeModel();
    const context = { step: position.step, model, tokenizer, prompts, tokensMax };
    for (const sample of await writeSamples(context)) {
      this.#folder.appendSample({ step, ...sample });
    }
  }

  #writeCheckpoint(): void {
    const { settings, tokenizer } = this.#data;
    const { position } = this.#training;
    this.#tally.lastCheckpointMs = performance.now();
    if (this.#tally.lastCheckpointStep === position.step) return;
    const path = this.#folder.checkpointPath(position.step);
    const model = this.#training.wholeModel();
    const content = { model, tokenizer, dtype: settings.checkpoint.dtype };
    writeCheckpoint(path, content, { training: this.#training, seconds: this.#seconds });
    this.#tally.lastCheckpointStep = position.step;
    this.#folder.pruneCheckpoints(settings.checkpoint.keep);
    const { timed } = this.#training;
    if (timed.length > 0) this.#folder.writeTrace(formatTrace(timed));
    this.#observer.onCheckpoint?.(position.step, path);
  }

  async #end(): Promise<TrainRunSummary> {
    const { position, averageWaits, averageWaitedSeconds } = this.#training;
    const isSampled = this.#isDue(this.#data.settings.samples.everySteps);
    // First what must not be lost: a sample may fail.
    this.#writeCheckpoint();
    if (!this.#isInterrupted && !isSampled) await this.#writeSamples();
    const seconds = this.#seconds;
    const validation = this.#isInterrupted ? undefined : this.#evaluate("whole");
    const averageValidation = this.#isInterrupted ? undefined : this.#evaluateAverage();
    const summary: TrainRunSummary = {
      run: this.#folder.path,
      checkpoint: this.#folder.checkpointPath(position.step),
      steps: position.step,
      tokens: position.tokens,
      validation,
      averageValidation,
      seconds,
      tokensPerSecond: this.#tokensPerSecond,
      wasInterrupted: this.#isInterrupted,
      averageWaits,
      averageWaitedSeconds,
    };
    if (!summary.wasInterrupted) this.#folder.writeSummary(summary);
    return summary;
  }
}

/** Moves of all layers, and the busiest rank of any. */
function worstOf(balances: StepOutcome["balances"]): NonNullable<StepRecord["rebalance"]> {
  return {
    numMoves: balances.reduce((sum, { numMoves }) => sum + numMoves, 0),
    before: Math.max(...balances.map(({ before }) => before)),
    after: Math.max(...balances.map(({ after }) => after)),
  };
}
