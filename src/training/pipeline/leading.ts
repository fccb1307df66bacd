/**
 * @file The training of a run over a pipeline, as the leading rank drives it.
 *
 * The leader is a rank of the pipeline itself, and alone has the data, the run folder and, on a
 * device of its own, the whole model: filled from the ranks when it is to be validated, sampled or
 * written, and asked when a loss was not finite. The optimizer's state stays where it is; a
 * checkpoint fetches it tensor by tensor.
 */
import { assert, defined, OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { Model } from "../../model/model.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import type { TimedAction } from "../../parallel/pipeline/simulate.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { Position, RunPlan } from "../budget.ts";
import type { Culprit } from "../health.ts";
import { biasTensors, bytesOf, type StateTensor } from "../run/state-tensors.ts";
import type { Training } from "../run/training.ts";
import type { TrainingSettings } from "../settings.ts";
import type { BatchSource, StepOutcome, Trainer, TrainerState } from "../trainer.ts";
import { fedBatches } from "./batch-feed.ts";
import type { Beginning, NextStep, Restored } from "./following.ts";
import { LEADER, RankChannel } from "./rank-channel.ts";
import { isNonFinite, RankTrainer } from "./rank-trainer.ts";
import type { PlacedTensor } from "./state-table.ts";

export interface LeadingOptions {
  readonly device: Device;
  /** For the whole model; may have all of the machine's threads, for the ranks rest meanwhile. */
  readonly wholeDevice: Device;
  readonly channel: RankChannel;
  readonly world: Communicator;
  readonly settings: TrainingSettings;
  readonly schedule: ScheduleKind;
  readonly loader: BatchSource;
}

export class LedTraining implements Training {
  readonly #rank: RankTrainer;
  readonly #channel: RankChannel;
  readonly #whole: Model;
  readonly #scratch: Arena;
  /** Whether the whole model is that of the ranks. */
  #isCurrent = false;

  private constructor(rank: RankTrainer, channel: RankChannel, whole: Model, scratch: Arena) {
    this.#rank = rank;
    this.#channel = channel;
    this.#whole = whole;
    this.#scratch = scratch;
  }

  /** The other ranks are in `follow`. */
  static async start(options: LeadingOptions): Promise<LedTraining> {
    const { device, channel, settings, schedule, loader } = options;
    const beginning: Beginning = { settings, schedule };
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
    for (const follower of channel.followers) await channel.untilReady(follower);
    training = new LedTraining(rank, channel, whole, new Arena(device.memory, "gathering"));
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
    return this.#rank.table.all.map(({ name, dtype, shape }, index) => ({
      name,
      dtype,
      shape,
      read: () => this.#fetch(index),
      fill: (read) => this.#put(index, read),
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
    this.#isCurrent = false;
  }

  get timed(): readonly (readonly TimedAction[])[] {
    if (this.#rank.timed.length === 0) return [];
    const others = this.#channel.followers.map((rank) => {
      this.#channel.order(rank, "timed");
      return this.#channel.receiveData(rank) as readonly TimedAction[];
    });
    return [this.#rank.timed, ...others];
  }

  #fillWhole(kind: "master" | "average"): void {
    const { parameters } = this.#whole;
    for (const { name, value } of parameters.list) this.#copy(`${kind}.${name}`, value);
    for (const { name, tensor } of biasTensors(this.#whole)) this.#copy(name, tensor);
    parameters.refreshCompute();
  }

  #copy(name: string, to: Tensor): void {
    const index = this.#rank.table.all.findIndex((placed) => placed.name === name);
    bytesOf(to).set(this.#fetch(index));
  }

  /** A tensor of the ranks, good until the next one. */
  #fetch(index: number): Uint8Array {
    const { name, dtype, shape, owner } = this.#placed(index);
    if (owner === LEADER) return bytesOf(this.#rank.table.tensorOf(name));
    this.#channel.order(owner, "fetch", index);
    return bytesOf(this.#channel.receiveAs(dtype, shape, owner));
  }

  #put(index: number, read: (target: Uint8Array) => void): void {
    const { name, dtype, shape, holders } = this.#placed(index);
    using _mark = this.#scratch.mark();
    const tensor = this.#scratch.allocate(dtype, shape);
    read(bytesOf(tensor));
    for (const holder of holders) {
      if (holder === LEADER) bytesOf(this.#rank.table.tensorOf(name)).set(bytesOf(tensor));
      else {
        this.#channel.order(holder, "put", index);
        this.#channel.send(tensor, holder);
      }
    }
  }

  #placed(index: number): PlacedTensor {
    const placed = this.#rank.table.all[index];
    assert(placed !== undefined, `a tensor of number ${index}`);
    return placed;
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
