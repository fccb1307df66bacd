/**
 * @file Our side of `hadal bench train --against torch`: the model of examples/torch-peer.json
 * takes training steps in this process, which reports its speed and its peak memory.
 */
import { readFileSync } from "node:fs";
import { ProfilingDevice } from "../../device/profiling-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { countParameters } from "../../model/counts.ts";
import { Model } from "../../model/model.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import { resolveSettings } from "../../training/settings.ts";
import { momentFormatOf, SEED, timeTraining } from "./model-cases.ts";

export const COMPARISON_THREADS = 2;
/** Timed steps of one process, after one that is not timed. */
export const COMPARISON_STEPS = 3;
const CONFIG = new URL("../../../examples/torch-peer.json", import.meta.url);

/** What one process of either side reports. */
export interface ComparisonSample {
  readonly parameters: number;
  readonly tokensPerSecond: number;
  readonly peakBytes: number;
}

export async function runComparison(recipe: RecipeName): Promise<ComparisonSample> {
  const changes = { value: JSON.parse(readFileSync(CONFIG, "utf8")), origin: CONFIG.pathname };
  const { model: config } = resolveSettings({ preset: "small", changes });
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
