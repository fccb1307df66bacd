/**
 * @file A model over the ranks of a pipeline: the micro-batches of a step through any schedule,
 * losses and gradients as one process would have them.
 *
 * Every rank is given all micro-batches and learns the results of all. Losses are computed on one
 * rank each and travel as they are; what is summed over layers is summed here, in their order.
 */
import { defined } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { BoundaryPool } from "../../parallel/pipeline/executor/boundary-pool.ts";
import { runSchedule } from "../../parallel/pipeline/executor/run-schedule.ts";
import { makeSchedule } from "../../parallel/pipeline/schedules/kinds.ts";
import type { Schedule } from "../../parallel/pipeline/schedules/schedule.ts";
import type { TimedAction } from "../../parallel/pipeline/simulate.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { type ModelConfig, moeLayerIndices } from "../config.ts";
import type { Batch, ModelOptions, StepOptions, StepResult } from "../model-types.ts";
import { summarise } from "../part-pass.ts";
import { PartModel } from "./part-model.ts";
import { copiesOn, layOutRanks, type PipelineShape, type RankLayout } from "./rank-layout.ts";
import { SharedParameters } from "./shared-parameters.ts";
import { StepReport } from "./step-report.ts";

export type PipelineOptions = Pick<ModelOptions, "precision" | "seed" | "experts"> & {
  readonly shape: Omit<PipelineShape, "numRanks">;
};

export interface PipelineStep {
  /** Of each micro-batch. */
  readonly results: readonly StepResult[];
  /** What this rank did. */
  readonly timed: readonly TimedAction[];
}

export class PipelineModel {
  readonly config: ModelConfig;
  readonly part: PartModel;
  readonly layout: RankLayout;
  readonly moeLayerIndices: readonly number[];
  readonly pipeline: Communicator;
  readonly #shape: PipelineShape;
  readonly #device: Device;
  readonly #shared: SharedParameters;
  readonly #scratch: Arena;
  readonly #schedules = new Map<number, Schedule>();
  /** By the rows of a boundary. */
  readonly #boundaries = new Map<number, BoundaryPool>();

  constructor(
    device: Device,
    pipeline: Communicator,
    config: ModelConfig,
    { shape, ...options }: PipelineOptions,
  ) {
    const { rank, size } = pipeline;
    this.config = config;
    this.pipeline = pipeline;
    this.#device = device;
    this.#shape = { ...shape, numRanks: size };
    this.layout = layOutRanks(config, this.#shape);
    const parts = defined(this.layout.parts[rank], `parts of rank ${rank}`);
    const copies = copiesOn(this.layout, rank);
    this.part = new PartModel(device, config, { ...options, parts, copies });
    this.moeLayerIndices = moeLayerIndices(config);
    this.#shared = new SharedParameters(device, pipeline, this.part.parameters, this.layout);
    this.#scratch = new Arena(device.memory, "pipeline");
  }

  /**
   * Collective: gradients of these micro-batches alone, in the parameters of their owners. The
   * batches are of one size and as many as the schedule admits.
   */
  forwardBackward(batches: readonly Batch[], options: StepOptions): PipelineStep {
    const first = defined(batches[0], "a micro-batch");
    this.part.begin({ batches, options });
    const timed = runSchedule({
      schedule: this.#scheduleOf(batches.length),
      communicator: this.pipeline,
      stageFor: (stage) => defined(this.part.stages.get(stage), `stage ${stage}`),
      boundaries: this.#boundariesOf(first.numSequences * first.seqLength),
      now: () => performance.timeOrigin + performance.now(),
    });
    this.part.joinGradients();
    this.#shared.sumGradients();
    return { results: this.#shareResults(batches, options), timed };
  }

  /** Collective, after owners have changed values: all ranks have them. */
  spreadValues(): void {
    this.#shared.spreadValues();
  }

  #shareResults(batches: readonly Batch[], options: StepOptions): StepResult[] {
    const report = new StepReport(this.config, batches.length);
    for (const [stage, { reports }] of this.part.stages) {
      const part = defined(this.layout.parts[this.pipeline.rank]?.get(stage), "the stage's part");
      report.add(part, reports);
    }
    using _mark = this.#scratch.mark();
    const values = this.#scratch.allocate("f64", [1, report.values.length]);
    view(values).set(report.values);
    this.pipeline.allReduce(values, values, "sum").wait();
    report.values.set(view(values));
    return batches.map(({ numSequences, seqLength }, microBatch) =>
      summarise(...report.read(microBatch), numSequences * seqLength, options),
    );
  }

  #scheduleOf(numMicroBatches: number): Schedule {
    const known = this.#schedules.get(numMicroBatches);
    if (known !== undefined) return known;
    const schedule = makeSchedule(this.#shape.kind, { ...this.#shape, numMicroBatches });
    this.#schedules.set(numMicroBatches, schedule);
    return schedule;
  }

  #boundariesOf(rows: number): BoundaryPool {
    const known = this.#boundaries.get(rows);
    if (known !== undefined) return known;
    const boundary = { dtype: "f32", shape: [rows, this.config.hiddenDim] } as const;
    const pool = new BoundaryPool(this.#device.memory, boundary);
    this.#boundaries.set(rows, pool);
    return pool;
  }
}
