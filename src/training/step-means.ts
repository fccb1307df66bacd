/**
 * @file The result of an optimizer step from those of its micro-batches, on whichever ranks they
 * ran: means of the losses, sums of the loads.
 */
import { assert } from "../base/errors.ts";
import type { StepResult, TrainableModel } from "../model/model-types.ts";
import type { Replicas } from "./data-parallel/replicas.ts";

/** Collective; a rank may have had no micro-batch, and every rank has the same answer. */
export function meanResult(
  { config, moeLayerIndices }: Pick<TrainableModel, "config" | "moeLayerIndices">,
  replicas: Pick<Replicas, "sum">,
  step: { readonly results: readonly StepResult[]; readonly numMicroBatches: number },
): StepResult {
  const { numMtpModules, numRoutedExperts } = config;
  const own = new Float64Array(3 + numMtpModules + moeLayerIndices.length * numRoutedExperts);
  for (const result of step.results) {
    const values = flatten(result);
    assert(values.length === own.length, "micro-batches have the model's modules and MoE layers");
    for (const [index, value] of values.entries()) own[index] = own[index]! + value;
  }
  const sums = replicas.sum(own);
  const means = sums.map((value) => value / step.numMicroBatches);
  const loads = sums.subarray(3 + numMtpModules);
  return {
    loss: means[0]!,
    balanceLoss: means[1]!,
    objective: means[2]!,
    mtpLosses: [...means.subarray(3, 3 + numMtpModules)],
    expertLoad: moeLayerIndices.map((_, order) =>
      Int32Array.from(loads.subarray(order * numRoutedExperts, (order + 1) * numRoutedExperts)),
    ),
  };
}

function flatten(result: StepResult): number[] {
  const { loss, balanceLoss, objective, mtpLosses, expertLoad } = result;
  return [loss, balanceLoss, objective, ...mtpLosses, ...expertLoad.flatMap((load) => [...load])];
}
