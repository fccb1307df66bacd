/**
 * @file Our side of `hadal bench train --against torch`: the small preset, which has the peer's
 * sizes, takes training steps in this process, which reports its speed and its peak memory.
 */
import { ProfilingDevice } from "../../device/profiling-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { countParameters } from "../../model/counts.ts";
import { Model } from "../../model/model.ts";
import { presetConfig } from "../../model/presets.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import { momentFormatOf, SEED, timeTraining, VOCAB_SIZE } from "./model-cases.ts";

export const COMPARISON_THREADS = 2;
/** Timed steps of one process, after one that is not timed. */
export const COMPARISON_STEPS = 3;

/** What one process of either side reports. */
export interface ComparisonSample {
  readonly parameters: number;
  readonly tokensPerSecond: number;
  readonly peakBytes: number;
}

export async function runComparison(recipe: RecipeName): Promise<ComparisonSample> {
  const config = presetConfig("small", VOCAB_SIZE);
  await using base = await openCpuDevice({ numThreads: COMPARISON_THREADS });
  const device = new ProfilingDevice(base);
  const precision = PRECISION_RECIPES[recipe];
  const model = new Model(device, config, { precision, seed: SEED, gradients: true });
  model.parameters.refreshCompute();
  const { tokensPerStep, secondsPerStep } = timeTraining(device, model, {
    steps: COMPARISON_STEPS,
    moments: momentFormatOf(precision),
  });
  return {
    parameters: countParameters(config).total,
    tokensPerSecond: tokensPerStep / secondsPerStep,
    peakBytes: process.resourceUsage().maxRSS * 1024,
  };
}
