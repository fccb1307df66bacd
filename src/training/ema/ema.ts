/**
 * @file An exponential moving average of the parameters, kept by a thread of its own.
 *
 *     average ← average + (value − average)·(1 − decay_n)
 *     decay_n = min(decay, (1 + n) ÷ (10 + n)), n from 1
 *
 * `begin` after an optimizer step hands the work over and returns; the next forward and backward
 * run meanwhile. `finish` before the parameters change again waits only if the thread is not done,
 * and counts when it had to. Every update sees exactly one step's values, so the average is the
 * same as if it were computed in turn, and a resumed run carries on bit for bit. Source:
 * DeepSeek-V3 report §3.2.3 (the coefficient is not published).
 */
import { Worker } from "node:worker_threads";
import { assert, InvariantError } from "../../base/errors.ts";
import { siblingModule } from "../../base/modules.ts";
import { SPAN_NAMES, type SpanName } from "../../model/parameter-layout.ts";
import type { ParameterSet } from "../../model/parameters.ts";
import type { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { allocateState, type StateSpans } from "../spans.ts";
import {
  type AverageControl,
  type AverageWorkerStart,
  COMPLETED,
  CONTROL_BYTES,
  FAILED,
  REQUESTED,
  viewControl,
} from "./control.ts";

/** How often a waiting trainer looks whether the thread has failed. */
const FAILURE_CHECK_MS = 1000;

type Values = Pick<ParameterSet, SpanName>;

/** The decay of update `n`, counted from 1: short at first, so that the initial values fade. */
export function decayAt(decay: number, n: number): number {
  return Math.min(decay, (1 + n) / (10 + n));
}

export class ParameterAverage implements AsyncDisposable {
  readonly state: StateSpans;
  readonly #parameters: Values;
  readonly #decay: number;
  readonly #worker: Worker;
  readonly #control: AverageControl;
  #waits = 0;
  #waitedSeconds = 0;

  private constructor(
    parameters: Values,
    state: StateSpans,
    decay: number,
    worker: Worker,
    control: AverageControl,
  ) {
    this.#parameters = parameters;
    this.state = state;
    this.#decay = decay;
    this.#worker = worker;
    this.#control = control;
  }

  /** Allocates the average from `arena` as a copy of the values, and starts the thread. */
  static async start(
    parameters: Values,
    arena: Arena,
    options: { readonly decay: number },
  ): Promise<ParameterAverage> {
    const { decay } = options;
    assert(decay > 0 && decay < 1, `decay (${decay}) must lie in (0, 1)`);
    const state = allocateState(parameters, arena, "average");
    for (const span of SPAN_NAMES) {
      assert(state[span].dtype === "f32", "an average is kept of f32 parameters");
      view(state[span]).set(view(parameters[span].values));
    }
    const buffer = new SharedArrayBuffer(CONTROL_BYTES);
    const workerData: AverageWorkerStart = {
      wasm: state.decayed.memory.wasm,
      spans: SPAN_NAMES.map((span) => ({
        valuesOffset: parameters[span].values.byteOffset,
        averageOffset: state[span].byteOffset,
        length: state[span].columns,
      })),
      control: buffer,
    };
    const worker = new Worker(siblingModule("./worker", import.meta.url), { workerData });
    await new Promise<void>((resolve, reject) => {
      worker.once("error", reject);
      worker.once("message", () => resolve());
    });
    worker.unref();
    return new ParameterAverage(parameters, state, decay, worker, viewControl(buffer));
  }

  /**
   * Let the thread take the values as they are now into the average; `n` counts these updates from
   * 1.
   */
  begin(n: number): void {
    const { counters, weight } = this.#control;
    assert(!this.#isBusy(), "the previous update of the average is finished first");
    weight[0] = 1 - decayAt(this.#decay, n);
    Atomics.add(counters, REQUESTED, 1);
    Atomics.notify(counters, REQUESTED);
  }

  /**
   * Return when the average is up to date; to be called before the values change, or the average is
   * read.
   */
  finish(): void {
    if (!this.#isBusy()) return;
    const { counters } = this.#control;
    const start = performance.now();
    while (this.#isBusy()) {
      if (Atomics.load(counters, FAILED) !== 0) {
        throw new InvariantError("the thread that averages the parameters has failed");
      }
      Atomics.wait(counters, COMPLETED, Atomics.load(counters, REQUESTED) - 1, FAILURE_CHECK_MS);
    }
    this.#waits++;
    this.#waitedSeconds += (performance.now() - start) / 1000;
  }

  /** How often `finish` found the thread busy. */
  get waits(): number {
    return this.#waits;
  }

  /** How long it waited in all. */
  get waitedSeconds(): number {
    return this.#waitedSeconds;
  }

  /** Exchange the averages with the parameters' values; doing it twice restores both. */
  exchange(): void {
    this.finish();
    for (const span of SPAN_NAMES) {
      const [values, average] = [view(this.#parameters[span].values), view(this.state[span])];
      const held = values.slice();
      values.set(average);
      average.set(held);
    }
  }

  #isBusy(): boolean {
    const { counters } = this.#control;
    return Atomics.load(counters, REQUESTED) !== Atomics.load(counters, COMPLETED);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}
