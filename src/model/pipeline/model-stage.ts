/**
 * @file A part of a model as the executor of pipelines runs it: many micro-batches live at once.
 *
 * A live micro-batch has an arena for what backward needs and a queue of weight gradients. Both
 * come from a pool, so that after the first step no memory is asked of the device. The queue is
 * deferred where the schedule puts weight gradients off. Gradients of norms, of the embedding and
 * of the head are added up in `backwardInput` already; both halves run in the order of the
 * micro-batches. Where experts are on several ranks, work yields what it waits for: a forward and a
 * backward that are interleaved have a scratch arena each.
 */
import { defined } from "../../base/errors.ts";
import type {
  BackwardCall,
  ForwardCall,
  Stage,
  Work,
} from "../../parallel/pipeline/executor/stage.ts";
import { Arena, type ArenaMark } from "../../tensor/arena.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type HeadLoss, readLosses } from "../head.ts";
import type { Batch, StepOptions } from "../model-types.ts";
import { openPass, type PassFrame } from "../open-pass.ts";
import {
  backwardPart,
  forwardPart,
  type PartForward,
  type PartLayers,
  type Routing,
  readRouting,
} from "../part-pass.ts";
import type { Pass } from "../pass.ts";
import { WeightGradQueue } from "../weight-grad-queue.ts";

/** The batches of a step by their number, and what is asked of each. */
export interface StageStep {
  readonly batches: readonly Batch[];
  readonly options: StepOptions;
}

/** What a stage has learned of one micro-batch. */
export interface StageReport {
  readonly routing: Routing;
  /** Empty before backward, and without an exit. */
  heads: readonly HeadLoss[];
}

interface ChunkMemory {
  readonly saved: Arena;
  readonly weightGrads: WeightGradQueue;
}

export interface StageOptions {
  /** For each kind of work; stages that take turns share them. */
  readonly scratch: { readonly forward: Arena; readonly backward: Arena };
  /** Whether experts are on several ranks. */
  readonly waits: boolean;
}

interface LiveChunk {
  readonly memory: ChunkMemory;
  readonly mark: ArenaMark;
  readonly pass: Pass;
  readonly forward: PartForward;
  readonly report: StageReport;
}

export class ModelStage implements Stage {
  readonly layers: PartLayers;
  /** By micro-batch, of the present step. */
  readonly reports: Map<number, StageReport> = new Map();
  readonly #frame: PassFrame;
  readonly #options: StageOptions;
  readonly #free: ChunkMemory[] = [];
  readonly #live = new Map<number, LiveChunk>();
  #step: StageStep | null = null;

  constructor(frame: PassFrame, layers: PartLayers, options: StageOptions) {
    this.#frame = frame;
    this.layers = layers;
    this.#options = options;
  }

  /** What follows is of this step. */
  begin(step: StageStep): void {
    this.#step = step;
    this.reports.clear();
  }

  *forward({ microBatch, input, output }: ForwardCall): Work {
    const { batches, options } = defined(this.#step, "a step that has begun");
    const memory = this.#free.pop() ?? this.#makeMemory();
    const mark = memory.saved.mark();
    const batch = defined(batches[microBatch], `micro-batch ${microBatch}`);
    const balanceScale = options.balanceWeight * (options.lossScale ?? 1);
    const arenas = { ...memory, scratch: this.#options.scratch.forward };
    const pass = openPass(this.#frame, arenas, batch, balanceScale);
    const forward = yield* forwardPart(this.layers, pass, {
      batch,
      input: asStream(input),
      output: asStream(output),
    });
    const report: StageReport = { routing: readRouting(forward), heads: [] };
    this.reports.set(microBatch, report);
    this.#live.set(microBatch, { memory, mark, pass, forward, report });
  }

  *backwardInput({ microBatch, dOutput, dInput, isFull }: BackwardCall): Work {
    const { options } = defined(this.#step, "a step that has begun");
    const { pass, forward, report, memory } = this.#liveChunk(microBatch);
    // Where this stage waits they fill the time; else they run while their operands are in caches.
    memory.weightGrads.deferred = !isFull || this.#options.waits;
    const backward = { ...pass, scratch: this.#options.scratch.backward };
    const heads = yield* backwardPart(this.layers, backward, forward, {
      options,
      dOutput: asStream(dOutput),
      dInput: asStream(dInput),
    });
    report.heads = heads.map(readLosses);
  }

  fillWait(microBatch: number): boolean {
    return this.#liveChunk(microBatch).memory.weightGrads.runNext();
  }

  backwardWeight(microBatch: number): void {
    const { memory, mark } = this.#liveChunk(microBatch);
    memory.weightGrads.run();
    mark[Symbol.dispose]();
    this.#live.delete(microBatch);
    this.#free.push(memory);
  }

  #liveChunk(microBatch: number): LiveChunk {
    return defined(this.#live.get(microBatch), `micro-batch ${microBatch}, forwarded here`);
  }

  #makeMemory(): ChunkMemory {
    const { device } = this.#frame;
    const saved = new Arena(device.memory, "saved");
    const weightGrads = new WeightGradQueue(device, new Arena(device.memory, "weight gradients"));
    return { saved, weightGrads };
  }
}

function asStream(tensor: Tensor | null): Tensor<FloatType> | null {
  return tensor as Tensor<FloatType> | null;
}
