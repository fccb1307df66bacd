/**
 * @file Balance without an auxiliary loss: each expert's routing bias moves against its load, once
 * a step.
 *
 *     bias[i] += speed · sign(mean load − load[i])
 *     MaxVio = (max load − mean load) ÷ mean load
 *
 * The load is counted over the whole batch of the step. The bias takes part in the choice of
 * experts and in nothing else, so no gradient reaches it. Sources: DeepSeek-V3 report §2.1.2; Wang
 * et al. 2024 (sign beats a proportional step).
 */
import { assert, defined } from "../base/errors.ts";
import type { TrainableModel } from "../model/model-types.ts";
import { view } from "../tensor/view.ts";

/** Move the biases of every MoE layer; `expertLoad` is in the order of `moeLayerIndices`. */
export function updateRouterBiases(
  model: Pick<TrainableModel, "gateBiases" | "moeLayerIndices">,
  expertLoad: readonly Int32Array[],
  speed: number,
): void {
  if (speed === 0) return;
  for (const { layerIndex, bias } of model.gateBiases) {
    const order = model.moeLayerIndices.indexOf(layerIndex);
    const load = defined(expertLoad[order], `the expert load of layer ${layerIndex}`);
    const values = view(bias);
    assert(values.length === load.length, `layer ${layerIndex}: one load an expert`);
    const mean = sum(load) / load.length;
    for (let expert = 0; expert < load.length; expert++) {
      values[expert] = values[expert]! + speed * Math.sign(mean - load[expert]!);
    }
  }
}

/** Steps that recent loads look back over. */
const RECENT_STEPS = 20;

/**
 * Recent mean loads with one more step in them, layer by layer: one batch is few documents, and its
 * MaxVio mostly says which ones they were.
 */
export function extendRecentLoads(
  recent: readonly (readonly number[])[],
  load: readonly Int32Array[],
): readonly (readonly number[])[] {
  return load.map((layer, order) => {
    const before = recent[order];
    if (before === undefined) return [...layer];
    return before.map((value, expert) => value + (layer[expert]! - value) / RECENT_STEPS);
  });
}

/** How far the busiest expert exceeds the mean; 0 is perfect balance. */
export function maxVio(load: ArrayLike<number>): number {
  const mean = sum(load) / load.length;
  return mean === 0 ? 0 : Math.max(...Array.from(load)) / mean - 1;
}

function sum(load: ArrayLike<number>): number {
  let total = 0;
  for (let expert = 0; expert < load.length; expert++) total += load[expert]!;
  return total;
}
