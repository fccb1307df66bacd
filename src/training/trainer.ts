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
import { defined, OperationalError } from "../base/errors.ts";
import { divExact } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import type { ExpertShare } from "../model/expert-share.ts";
import type { Batch, StepOptions, StepResult, TrainableModel } from "../model/model-types.ts";
import { declareParameters, type ParameterDeclaration } from "../model/parameter-declarations.ts";
import { spanNameOf } from "../model/parameter-layout.ts";
import type { ExpertExchange, LinkBytes } from "../parallel/expert/exchange/expert-exchange.ts";
import { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { flatSlice } from "../tensor/flat-slice.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { type Position, progressAt, type RunPlan, sequencesAt } from "./budget.ts";
import type { BatchLoader, LoaderState } from "./data/batches.ts";
import { alone, type Replicas } from "./data-parallel/replicas.ts";
import { tuneExchange } from "./data-parallel/tune-exchange.ts";
import { type ReplicaGroups, ShardedReplicas } from "./data-parallel/zero.ts";
import { ParameterAverage } from "./ema/ema.ts";
import {
  type BalanceOptions,
  checkMoments,
  ExpertBalancer,
  type ExpertsState,
  type LayerBalance,
} from "./expert-balance/expert-balancer.ts";
import { ExpertCopies } from "./expert-balance/expert-copies.ts";
import {
  type Culprit,
  countNonFinite,
  EMPTY_TREND,
  extendTrend,
  isSpike,
  type LossTrend,
  longestGradient,
  type NonFiniteCounts,
  nonFiniteGradientError,
  nonFiniteLossError,
} from "./health.ts";
import { isFiniteResult, type ModelShare, wholeShare } from "./model-share.ts";
import { AdamW, type MomentOptions } from "./optimizer/adamw.ts";
import { clipScale, normOf, squaresOf } from "./optimizer/clip.ts";
import { cutRuleOf } from "./optimizer/cut-rule.ts";
import { Muon } from "./optimizer/muon.ts";
import type { Optimizer } from "./optimizer/optimizer.ts";
import { extendRecentLoads, maxVio, updateRouterBiases } from "./router-bias.ts";
import {
  type LearningRateSchedule,
  learningRateAt,
  makeSchedule,
  switchedValueAt,
} from "./schedule.ts";
import type { TrainingSettings } from "./settings.ts";
import type { OptimizerPart, StateSpans } from "./spans.ts";
import { meanResult } from "./step-means.ts";

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
  /** Of the ranks that share experts, layer by layer, where these were placed anew after it. */
  readonly balances: readonly LayerBalance[];
  /** What all ranks sent to others' experts and back, by kind of link; null without such ranks. */
  readonly exchanged: LinkBytes | null;
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
  /** Only where experts follow their load. */
  readonly experts?: ExpertsState;
}

/** Where micro-batches come from; a `BatchLoader` is one. */
export type BatchSource = Pick<BatchLoader, "next" | "restore" | "state">;

interface CommonParts {
  readonly device: Device;
  readonly loader: BatchSource;
  readonly settings: TrainingSettings;
}

export interface TrainerParts extends CommonParts {
  readonly model: TrainableModel;
  /** The ranks that train together, each with a trainer; left out where there is one. */
  readonly ranks?: ReplicaGroups;
  /** Of a model whose experts are divided over ranks. */
  readonly experts?: ExpertRankParts;
}

export interface ExpertRankParts {
  /** The model's own. */
  readonly share: ExpertShare;
  /** How experts follow their load; they stay where they are if left out. */
  readonly balance?: BalanceOptions;
}

/** The trainer of one rank of many. */
export interface RankTrainerParts extends CommonParts {
  readonly share: ModelShare;
  readonly replicas: Replicas;
  /** Moves experts to where their load is; left out where none move. */
  readonly balancer?: ExpertBalancer | undefined;
  /** Reaches the ranks that share experts; left out where all are here. */
  readonly exchange?: ExpertExchange | undefined;
}

interface TrainerArenas {
  readonly state: Arena;
  readonly scratch: Arena;
}

export class Trainer implements AsyncDisposable {
  readonly model: ModelShare;
  readonly optimizer: Optimizer;
  /** The moving average of the parameters, if the settings want one. */
  readonly average: ParameterAverage | undefined;
  /** What this rank's optimizer moves. */
  readonly part: OptimizerPart;
  /** The length of the run, once it is known; decides the progress that schedules see. */
  plan: RunPlan | undefined;
  readonly #device: Device;
  readonly #loader: BatchSource;
  readonly #settings: TrainingSettings;
  readonly #schedule: LearningRateSchedule;
  readonly #replicas: Replicas;
  readonly #balancer: ExpertBalancer | undefined;
  readonly #exchange: ExpertExchange | undefined;
  readonly #arenas: TrainerArenas;
  readonly #declarations: readonly ParameterDeclaration[];
  #position: Position = { step: 0, tokens: 0 };
  #trend: LossTrend = EMPTY_TREND;
  #recentLoads: readonly (readonly number[])[] = [];
  /** Of the last step's gradients, parameter by parameter. */
  #squares: Float64Array = new Float64Array(0);

  private constructor(
    parts: RankTrainerParts,
    optimizer: Optimizer,
    average: ParameterAverage | undefined,
    arenas: TrainerArenas,
  ) {
    this.model = parts.share;
    this.optimizer = optimizer;
    this.average = average;
    this.part = parts.replicas.part;
    this.#device = parts.device;
    this.#loader = parts.loader;
    this.#settings = parts.settings;
    this.#schedule = makeSchedule(parts.settings.learningRate);
    this.#replicas = parts.replicas;
    this.#balancer = parts.balancer;
    this.#exchange = parts.exchange;
    this.#arenas = arenas;
    this.#declarations = declareParameters(parts.share.config);
  }

  /** A trainer of a whole model, at step 0 of its present parameters. */
  static async start(parts: TrainerParts): Promise<Trainer> {
    const { device, model, loader, settings } = parts;
    const scratch = new Arena(device.memory, "replicas");
    const { replicas, balancer } = openTogether(parts, scratch);
    const share = wholeShare(model, replicas);
    const exchange = parts.experts?.share.exchange;
    if (exchange !== undefined) tuneExchange(exchange, settings, scratch);
    const common = { device, loader, settings };
    return Trainer.startRank({ ...common, share, replicas, balancer, exchange });
  }

  /** A trainer of this rank's share of a model, at step 0 of its present parameters. */
  static async startRank(parts: RankTrainerParts): Promise<Trainer> {
    const { device, settings } = parts;
    const { part } = parts.replicas;
    const state = new Arena(device.memory, "optimizer");
    const scratch = new Arena(device.memory, "optimizer scratch");
    const optimizer =
      settings.optimizer.name === "muon"
        ? new Muon(device, { state, scratch }, part, settings.optimizer, momentsOf(settings))
        : new AdamW(device, state, part, settings.optimizer, momentsOf(settings));
    const { decay } = settings.average;
    const average =
      decay > 0 ? await ParameterAverage.start(part.spans, state, { decay }) : undefined;
    return new Trainer(parts, optimizer, average, { state, scratch });
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
      ...(this.#balancer === undefined ? {} : { experts: this.#balancer.state }),
    };
  }

  /** Bytes of this rank's moments and average. */
  get stateBytes(): number {
    return this.#arenas.state.liveBytes;
  }

  /** Collective: moments and average of all parameters, whichever rank keeps them. */
  gatherStates(): readonly StateSpans[] {
    return this.#states().map((state) => this.#replicas.gatherState(state));
  }

  /** Take this rank's part of what trainers of any number of ranks have gathered. */
  takeStates(whole: readonly StateSpans[]): void {
    for (const [index, state] of this.#states().entries()) {
      this.#replicas.takeState(defined(whole[index], `the state ${state.kind}`), state);
    }
  }

  /** Collective: the average in place of the parameters; doing it twice restores both. */
  exchangeAverage(): void {
    defined(this.average, "an average").exchange();
    this.#replicas.gatherValues();
    this.model.parameters.refreshCompute();
  }

  /** Where the last step's gradient is longest. */
  get longestGradient(): Culprit {
    const names = this.#declarations.map(({ name }) => name);
    return longestGradient(names, this.#squares);
  }

  #states(): readonly StateSpans[] {
    this.average?.finish();
    return this.average === undefined
      ? this.optimizer.state
      : [...this.optimizer.state, this.average.state];
  }

  /** Go on from `state`; the tensors were filled by the caller. Collective over ranks. */
  restore(state: TrainerState): void {
    this.#loader.restore(state.loader);
    this.#position = { step: state.step, tokens: state.tokens };
    this.#trend = state.trend;
    this.#recentLoads = state.recentLoads;
    if (state.experts !== undefined) this.#balancer?.restore(state.experts, this.#ofExperts);
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
    const result = this.#accumulateGradients(numSequences, progress);
    this.#replicas.sumGradients();
    const gradNorm = this.#checkedNorm(result.loss);
    const learningRate = learningRateAt(this.#schedule, { step, progress });
    this.average?.finish();
    this.optimizer.update({
      learningRate,
      gradientScale: clipScale(gradNorm, this.#settings.optimizer.clipNorm),
      step: step + 1,
    });
    this.#replicas.gatherValues();
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
      balances: this.#followLoad(step, result.expertLoad),
      exchanged: this.#sumExchanged(),
    };
  }

  /** Collective. */
  #sumExchanged(): LinkBytes | null {
    if (this.#exchange === undefined) return null;
    const { acrossHosts, withinHost } = this.#exchange.takeBytes();
    const sums = this.#replicas.sumParts(Float64Array.of(acrossHosts, withinHost));
    return { acrossHosts: sums[0]!, withinHost: sums[1]! };
  }

  /** Collective: experts move to where their load is expected, if it is time. */
  #followLoad(step: number, expertLoad: readonly Int32Array[]): readonly LayerBalance[] {
    return this.#balancer?.follow(step, expertLoad, this.#ofExperts) ?? [];
  }

  /** Moments and average of this rank's part of the experts. */
  readonly #ofExperts = (): readonly Tensor[] => this.#states().map(({ experts }) => experts);

  /** The global gradient norm, which is finite. */
  #checkedNorm(loss: number): number {
    const { spans } = this.part;
    const counted = { spans, pieces: this.#replicas.countedPieces() };
    const names = this.#declarations.map(({ name }) => name);
    const squares = squaresOf(this.#device, this.#arenas.scratch, counted, names);
    this.#squares = this.#replicas.sumParts(squares);
    const gradNorm = normOf(this.#squares);
    if (!Number.isFinite(gradNorm)) {
      const { step } = this.#position;
      throw nonFiniteGradientError(this.#declarations, step, this.#countNonFinite(names), {
        loss,
        gradNorm,
      });
    }
    return gradNorm;
  }

  /** Collective. */
  #countNonFinite(names: readonly string[]): NonFiniteCounts {
    const counts = new Float64Array(2 * names.length);
    for (const { parameter, place, numElements } of this.part.pieces) {
      const span = this.part.spans[spanNameOf(parameter)];
      const index = names.indexOf(parameter.name);
      const count = (of: Tensor<FloatType>): number =>
        countNonFinite(view(flatSlice(of, place, numElements)));
      counts[index] = count(span.values);
      counts[names.length + index] = count(span.gradients);
    }
    const all = this.#replicas.sumParts(counts);
    return { values: all.subarray(0, names.length), gradients: all.subarray(names.length) };
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
    const { rank, size, inStep } = this.#replicas;
    if (inStep && numMicroBatches % size !== 0) {
      throw new OperationalError(
        "config.value",
        `a step of ${numSequences} sequences does not divide over ${size} ranks that share ` +
          `experts; take a batch.sequences that is a multiple of ${size * batch.microBatch}, ` +
          "and no ramp",
      );
    }
    // Every rank draws all, so that the loader's state is that of one process.
    const batches = Array.from({ length: numMicroBatches }, (): Batch => {
      const { tokens } = this.#loader.next(batch.microBatch);
      return { tokens, numSequences: batch.microBatch, seqLength: data.sequenceLength };
    });
    const own = batches.filter((_, index) => index % size === rank);
    const results = this.model.computeGradients(own, options);
    const mean = meanResult(this.model, this.#replicas, { results, numMicroBatches });
    if (!isFiniteResult(mean)) throw this.#nonFiniteLoss(results, batches);
    return mean;
  }

  /** Collective: every rank has learned that a micro-batch of some rank is broken. */
  #nonFiniteLoss(results: readonly StepResult[], batches: readonly Batch[]): OperationalError {
    const { step } = this.#position;
    const { rank, size } = this.#replicas;
    const broken = new Float64Array(batches.length);
    for (const [index, { loss, mtpLosses }] of results.entries()) {
      const value = [loss, ...mtpLosses].find((one) => !Number.isFinite(one));
      broken[index * size + rank] = value ?? 0;
    }
    const values = this.#replicas.sum(broken);
    const first = values.findIndex((value) => !Number.isFinite(value));
    const value = defined(values[first], "the loss that is not finite");
    const batch = defined(batches[first], "its micro-batch");
    const suspect = this.model.suspect();
    if (suspect !== null) return nonFiniteLossError(suspect, step, value, batch);
    return new OperationalError("training.nonfinite", `step ${step}: the loss is not finite`);
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

function openTogether(
  parts: TrainerParts,
  scratch: Arena,
): Pick<RankTrainerParts, "replicas" | "balancer"> {
  const { model, settings, ranks, experts } = parts;
  const own = model.parameters.own;
  if (ranks === undefined) return { replicas: alone(own) };
  const nearestCut = cutRuleOf(settings.optimizer.name, own);
  const hasCopies = experts?.share.hasCopies === true;
  if (hasCopies) checkMoments(settings);
  const copies = hasCopies ? new ExpertCopies(experts.share, model, scratch) : null;
  const replicas = new ShardedReplicas(ranks, own, { nearestCut, scratch, copies });
  if (experts?.balance === undefined) return { replicas };
  const places = { ...ranks, parts: replicas.expertParts };
  const { share, balance } = experts;
  const balancing = { places, scratch, spreadValues: () => {} };
  return { replicas, balancer: new ExpertBalancer(share, model, balance, balancing) };
}
