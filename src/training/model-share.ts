/**
 * @file What the trainer has of a model on one rank: all of it, or the layers of a pipeline's rank.
 */
import type { ModelConfig } from "../model/config.ts";
import type {
  Batch,
  GateBias,
  StepOptions,
  StepResult,
  TrainableModel,
} from "../model/model-types.ts";
import type { ParameterSet } from "../model/parameters.ts";
import type { Replicas } from "./data-parallel/replicas.ts";
import type { Suspect } from "./health.ts";

export interface ModelShare {
  readonly config: ModelConfig;
  /** Held on this rank. */
  readonly parameters: ParameterSet;
  /** Held on this rank. */
  readonly gateBiases: readonly GateBias[];
  /** Of the whole model. */
  readonly moeLayerIndices: readonly number[];
  /**
   * The gradients of these micro-batches alone, and what came of each; the list ends with the first
   * whose loss is not finite, or goes on behind it. Collective in a pipeline.
   */
  computeGradients(batches: readonly Batch[], options: StepOptions): readonly StepResult[];
  /**
   * What can be asked why a loss was not finite; null where another rank has it. Collective in a
   * pipeline.
   */
  suspect(): Suspect | null;
}

/** Whether every loss of a micro-batch is finite. */
export function isFiniteResult({ loss, mtpLosses }: StepResult): boolean {
  return [loss, ...mtpLosses].every(Number.isFinite);
}

/**
 * The whole model in this process, which shows before each micro-batch that it lives; others go
 * through theirs with it if they share experts.
 */
export function wholeShare(
  model: TrainableModel,
  replicas: Pick<Replicas, "tick" | "inStep">,
): ModelShare {
  const { config, parameters, gateBiases, moeLayerIndices } = model;
  return {
    config,
    parameters,
    gateBiases,
    moeLayerIndices,
    computeGradients: (batches, options) => {
      parameters.zeroGradients();
      const results: StepResult[] = [];
      for (const batch of batches) {
        replicas.tick();
        const result = model.forwardBackward(batch, options);
        results.push(result);
        if (!replicas.inStep && !isFiniteResult(result)) break;
      }
      return results;
    },
    suspect: () => model,
  };
}
