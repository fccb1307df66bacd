/**
 * @file The training of a run over ranks, as the leading one drives it.
 *
 * The leader is a rank like the others, and alone has the data, the run folder and, on a
 * device of its own, the whole model: filled from the ranks when it is to be validated, sampled or
 * written, and asked when a loss was not finite. The optimizer's state stays where it is; a
 * checkpoint fetches it tensor by tensor, from as many ranks as have pieces of one, so that it is
 * the same whatever the layout.
 */
import { defined, OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { Model } from "../../model/model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { rankAt } from "../../parallel/mesh.ts";
import type { TimedAction } from "../../parallel/pipeline/simulate.ts";
import { Arena } from "../../tensor/arena.ts";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { Position, RunPlan } from "../budget.ts";
import type { Culprit } from "../health.ts";
import { biasTensors, bytesOf, type StateTensor } from "../run/state-tensors.ts";
import type { Training } from "../run/training.ts";
import type { TrainingSettings } from "../settings.ts";
import type { BatchSource, StepOutcome, Trainer, TrainerState } from "../trainer.ts";
import { fedBatches } from "./batch-feed.ts";
import type { Beginning, NextStep, Restored } from "./following.ts";
import { type HeldPiece, statesOf } from "./held-state.ts";
import { LEADER, RankChannel } from "./rank-channel.ts";
import { isNonFinite, RankTrainer } from "./rank-trainer.ts";
import { type PlacedPiece, type PlacedTensor, placeState } from "./state-table.ts";
import type { TrainingLayout } from "./training-layout.ts";

export interface LeadingOptions {
  readonly device: Device;
  /** For the whole model; may have all of the machine's threads, for the ranks rest meanwhile. */
  readonly wholeDevice: Device;
  readonly channel: RankChannel;
  readonly world: Communicator;
  readonly settings: TrainingSettings;
  readonly layout: TrainingLayout;
  readonly loader: BatchSource;
}

interface LedParts {
  readonly rank: RankTrainer;
  readonly channel: RankChannel;
  readonly whole: Model;
  readonly layout: TrainingLayout;
  readonly settings: TrainingSettings;
  /** What each rank holds. */
  readonly held: readonly (readonly HeldPiece[])[];
}

export class LedTraining implements Training {
  readonly #rank: RankTrainer;
  readonly #channel: RankChannel;
  readonly #whole: Model;
  readonly #layout: TrainingLayout;
  readonly #settings: TrainingSettings;
  readonly #scratch: Arena;
  #table: readonly PlacedTensor[];
  /** Whether the whole model is that of the ranks. */
  #isCurrent = false;

  private constructor({ rank, channel, whole, layout, settings, held }: LedParts, scratch: Arena) {
    this.#rank = rank;
    this.#channel = channel;
    this.#whole = whole;
    this.#layout = layout;
    this.#settings = settings;
    this.#table = placeState(settings.model, statesOf(rank.trainer), held);
    this.#scratch = scratch;
  }

  /** The other ranks are in `follow`. */
  static async start(options: LeadingOptions): Promise<LedTraining> {
    const { device, channel, settings, layout, loader } = options;
    const beginning: Beginning = { settings, layout };
    for (const rank of channel.followers) {
      channel.order(rank, "begin");
      channel.sendData(beginning, rank);
    }
    const whole = new Model(options.wholeDevice, settings.model, {
      precision: settings.recipe,
      seed: null,
      gradients: false,
    });
    let training: LedTraining | undefined;
    const rank = await RankTrainer.start({
      ...options,
      loader: fedBatches(loader, channel),
      // All ranks have learned of the loss and are waiting for orders.
      suspect: () => {
        channel.isInStep = false;
        return defined(training, "a training that has begun").wholeModel();
      },
    });
    const held: (readonly HeldPiece[])[] = [rank.held.pieces];
    for (const follower of channel.followers) {
      await channel.untilReady(follower);
      held.push(channel.receiveData(follower) as readonly HeldPiece[]);
    }
    const parts = { rank, channel, whole, layout, settings, held };
    training = new LedTraining(parts, new Arena(device.memory, "gathering"));
    return training;
  }

  get #trainer(): Trainer {
    return this.#rank.trainer;
  }

  get position(): Position {
    return this.#trainer.position;
  }

  get plan(): RunPlan | undefined {
    return this.#trainer.plan;
  }

  set plan(plan: RunPlan | undefined) {
    this.#trainer.plan = plan;
  }

  get moeLayerIndices(): readonly number[] {
    return this.#whole.moeLayerIndices;
  }

  get hasAverage(): boolean {
    return this.#trainer.average !== undefined;
  }

  get averageWaits(): number {
    return this.#trainer.average?.waits ?? 0;
  }

  get averageWaitedSeconds(): number {
    return this.#trainer.average?.waitedSeconds ?? 0;
  }

  step(): StepOutcome {
    const next: NextStep = { plan: this.plan ?? null };
    for (const rank of this.#channel.followers) {
      this.#channel.order(rank, "step");
      this.#channel.sendData(next, rank);
    }
    this.#isCurrent = false;
    this.#channel.isInStep = true;
    try {
      const outcome = this.#trainer.step();
      this.#channel.isInStep = false;
      if (outcome.balances.some(({ numMoves }) => numMoves > 0)) this.#learnPlaces();
      return outcome;
    } catch (error) {
      // All ranks have found out the same, and wait for orders.
      if (isNonFinite(error)) this.#channel.isInStep = false;
      throw error;
    }
  }

  get longestGradient(): Culprit {
    return this.#trainer.longestGradient;
  }

  wholeModel(): Model {
    if (!this.#isCurrent) this.#fillWhole("master");
    this.#isCurrent = true;
    return this.#whole;
  }

  withAverage<T>(use: (model: Model) => T): T {
    this.#isCurrent = false;
    this.#fillWhole("average");
    return use(this.#whole);
  }

  get state(): TrainerState {
    return this.#trainer.state;
  }

  get tensors(): readonly StateTensor[] {
    return this.#table.map((placed) => ({
      name: placed.name,
      dtype: placed.dtype,
      shape: placed.shape,
      read: () => this.#fetch(placed),
      fill: (read) => this.#put(placed, read),
    }));
  }

  restore(state: TrainerState, plan: RunPlan | undefined): void {
    const restored: Restored = { state };
    for (const rank of this.#channel.followers) {
      this.#channel.order(rank, "restore");
      this.#channel.sendData(restored, rank);
    }
    this.#trainer.restore(state);
    this.#trainer.plan = plan;
    if (state.experts !== undefined) this.#learnPlaces();
    this.#isCurrent = false;
  }

  /** Of the first pipeline. */
  get timed(): readonly (readonly TimedAction[])[] {
    if (this.#rank.timed.length === 0) return [];
    const { mesh } = this.#layout;
    return Array.from({ length: mesh.pp }, (_, pp) => {
      const rank = rankAt(mesh, { pp, ep: 0, dp: 0 });
      if (rank === LEADER) return this.#rank.timed;
      this.#channel.order(rank, "timed");
      return this.#channel.receiveData(rank) as readonly TimedAction[];
    });
  }

  /** After experts have moved. */
  #learnPlaces(): void {
    const { held, trainer } = this.#rank;
    held.refresh();
    const all: (readonly HeldPiece[])[] = [held.pieces];
    for (const rank of this.#channel.followers) {
      this.#channel.order(rank, "held");
      all.push(this.#channel.receiveData(rank) as readonly HeldPiece[]);
    }
    this.#table = placeState(this.#settings.model, statesOf(trainer), all);
  }

  #fillWhole(kind: "master" | "average"): void {
    const { parameters } = this.#whole;
    for (const { name, value } of parameters.list) this.#copy(`${kind}.${name}`, value);
    for (const { name, tensor } of biasTensors(this.#whole)) this.#copy(name, tensor);
    parameters.refreshCompute();
  }

  #copy(name: string, to: Tensor): void {
    const placed = this.#table.find((candidate) => candidate.name === name);
    bytesOf(to).set(this.#fetch(defined(placed, `the place of ${name}`)));
  }

  /** A tensor of the ranks, good until the next one. */
  #fetch({ dtype, shape, sources }: PlacedTensor): Uint8Array {
    const [first] = sources;
    if (sources.length === 1) return this.#fetchPiece(dtype, defined(first, "a piece"));
    using _mark = this.#scratch.mark();
    const whole = bytesOf(this.#scratch.allocate(dtype, shape));
    for (const piece of sources) {
      whole.set(this.#fetchPiece(dtype, piece), piece.start * DTYPE_BYTES[dtype]);
    }
    return whole;
  }

  #fetchPiece(dtype: DType, { rank, number, numElements }: PlacedPiece): Uint8Array {
    if (rank === LEADER) return bytesOf(this.#rank.held.tensor(number));
    this.#channel.order(rank, "fetch", number);
    return bytesOf(this.#channel.receiveAs(dtype, [1, numElements], rank));
  }

  #put({ dtype, shape, holders }: PlacedTensor, read: (target: Uint8Array) => void): void {
    using _mark = this.#scratch.mark();
    const tensor = this.#scratch.allocate(dtype, shape);
    read(bytesOf(tensor));
    for (const { rank, number, start, numElements } of holders) {
      const piece = flatSlice(tensor, start, numElements);
      if (rank === LEADER) bytesOf(this.#rank.held.tensor(number)).set(bytesOf(piece));
      else {
        this.#channel.order(rank, "put", number);
        this.#channel.send(piece, rank);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#rank[Symbol.asyncDispose]();
  }
}

/** What is wrong when ranks no longer hear each other. */
const OF_RANKS: readonly string[] = [
  "parallel.rankFailed",
  "parallel.rankLost",
  "parallel.mismatch",
  "parallel.mpi",
];

/** Whether the other ranks were let go: a failure while they waited for orders. */
export function isOrderly(error: unknown): error is OperationalError {
  return error instanceof OperationalError && !OF_RANKS.includes(error.code);
}

/**
 * Runs `lead`, and lets the other ranks go when it is over, or has failed in an orderly way. Any
 * other failure is to end this rank's thread or process, and the others learn of that.
 */
export async function leading<T>(
  device: Device,
  world: Communicator,
  lead: (channel: RankChannel) => Promise<T>,
): Promise<T> {
  const channel = new RankChannel(world, device.memory);
  const dismiss = (): void => {
    for (const rank of channel.followers) channel.order(rank, "end");
  };
  try {
    const result = await lead(channel);
    dismiss();
    return result;
  } catch (error) {
    if (!isOrderly(error)) throw error;
    if (channel.isInStep) {
      const message = `within a step: ${error.message}`;
      throw new OperationalError("parallel.rankFailed", message, error.details, error);
    }
    dismiss();
    throw error;
  }
}
