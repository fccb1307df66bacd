/**
 * @file What the ranks of a pipeline tell each other about a step: losses and loads of every
 * micro-batch, as one vector of f64.
 *
 *     micro-batch by micro-batch:  (loss, objective) of each head | balance loss of each MoE layer
 *                                  | load of each of its experts
 *
 * Each value is known to one rank and zero on the others, so their sum over the ranks is exact.
 */
import { assert } from "../../base/errors.ts";
import { type ModelConfig, moeLayerIndices } from "../config.ts";
import type { HeadLoss } from "../head.ts";
import type { Routing } from "../part-pass.ts";
import { type ModelPart, partLayerIndices } from "./model-part.ts";
import type { StageReport } from "./model-stage.ts";

export class StepReport {
  readonly values: Float64Array;
  readonly #numHeads: number;
  readonly #moeLayers: readonly number[];
  readonly #numExperts: number;
  readonly #width: number;
  readonly #config: ModelConfig;

  constructor(config: ModelConfig, numMicroBatches: number) {
    this.#config = config;
    this.#numHeads = 1 + config.numMtpModules;
    this.#moeLayers = moeLayerIndices(config);
    this.#numExperts = config.numRoutedExperts;
    this.#width = 2 * this.#numHeads + this.#moeLayers.length * (1 + this.#numExperts);
    this.values = new Float64Array(numMicroBatches * this.#width);
  }

  /** What a stage of this rank has learned. */
  add(part: ModelPart, reports: ReadonlyMap<number, StageReport>): void {
    const order = partLayerIndices(this.#config, part).flatMap((layer) => {
      const at = this.#moeLayers.indexOf(layer);
      return at < 0 ? [] : [at];
    });
    for (const [microBatch, { heads, routing }] of reports) {
      const row = this.#row(microBatch);
      for (const [index, { loss, objective }] of heads.entries()) {
        row.set([loss, objective], 2 * index);
      }
      const { balanceLosses, expertLoad } = routing;
      assert(expertLoad.length === order.length, "a load for each MoE layer of the part");
      for (const [index, at] of order.entries()) {
        row[2 * this.#numHeads + at] = balanceLosses[index]!;
        row.set(expertLoad[index]!, this.#loadStart(at));
      }
    }
  }

  /** Once the values are those of all ranks: what one micro-batch came to. */
  read(microBatch: number): [heads: Pick<HeadLoss, "loss" | "objective">[], routing: Routing] {
    const row = this.#row(microBatch);
    const heads = Array.from({ length: this.#numHeads }, (_, index) => ({
      loss: row[2 * index]!,
      objective: row[2 * index + 1]!,
    }));
    const balanceLosses = this.#moeLayers.map((_, at) => row[2 * this.#numHeads + at]!);
    const expertLoad = this.#moeLayers.map((_, at) => {
      const start = this.#loadStart(at);
      return Int32Array.from(row.subarray(start, start + this.#numExperts));
    });
    return [heads, { balanceLosses, expertLoad }];
  }

  #loadStart(at: number): number {
    return 2 * this.#numHeads + this.#moeLayers.length + at * this.#numExperts;
  }

  #row(microBatch: number): Float64Array {
    return this.values.subarray(microBatch * this.#width, (microBatch + 1) * this.#width);
  }
}
