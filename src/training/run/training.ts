/**
 * @file The training of a run as its session drives it: in this process alone, or over ranks that
 * this one leads.
 */
import type { Model } from "../../model/model.ts";
import type { TimedAction } from "../../parallel/pipeline/simulate.ts";
import type { Position, RunPlan } from "../budget.ts";
import type { Culprit } from "../health.ts";
import type { StepOutcome, Trainer, TrainerState } from "../trainer.ts";
import { ownTensors, type StateTensor, stateTensor } from "./state-tensors.ts";

export interface Training extends AsyncDisposable {
  readonly position: Position;
  plan: RunPlan | undefined;
  readonly moeLayerIndices: readonly number[];
  readonly hasAverage: boolean;
  /** How often and how long steps waited for the average. */
  readonly averageWaits: number;
  readonly averageWaitedSeconds: number;
  step(): StepOutcome;
  /** Where the last step's gradient is longest. */
  readonly longestGradient: Culprit;
  /** The whole model as it is after the last step; until the next one. */
  wholeModel(): Model;
  /** The same with the averaged parameters, while `use` runs. */
  withAverage<T>(use: (model: Model) => T): T;
  readonly state: TrainerState;
  /** Everything of the training that lies in tensors, in the order of the state's file. */
  readonly tensors: readonly StateTensor[];
  /** Go on from `state`; the tensors were filled before. */
  restore(state: TrainerState, plan: RunPlan | undefined): void;
  /** What each rank did in the last step, and when; empty where there is one. */
  readonly timed: readonly (readonly TimedAction[])[];
}

/** Training in this process. */
export class LocalTraining implements Training {
  readonly #trainer: Trainer;
  readonly #model: Model;
  readonly timed: readonly [] = [];

  constructor(trainer: Trainer, model: Model) {
    this.#trainer = trainer;
    this.#model = model;
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
    return this.#model.moeLayerIndices;
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
    return this.#trainer.step();
  }

  get longestGradient(): Culprit {
    return this.#trainer.longestGradient;
  }

  wholeModel(): Model {
    return this.#model;
  }

  withAverage<T>(use: (model: Model) => T): T {
    this.#trainer.exchangeAverage();
    try {
      return use(this.#model);
    } finally {
      this.#trainer.exchangeAverage();
    }
  }

  get state(): TrainerState {
    return this.#trainer.state;
  }

  get tensors(): readonly StateTensor[] {
    return ownTensors(this.#trainer).map(stateTensor);
  }

  restore(state: TrainerState, plan: RunPlan | undefined): void {
    this.#trainer.restore(state);
    this.#trainer.plan = plan;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#trainer[Symbol.asyncDispose]();
  }
}
