/**
 * @file Our side of `hadal bench … --against PEER`: in this process the small preset takes training
 * steps, or reads a prompt and decodes, and reports its speed.
 */
import { assert } from "../../base/errors.ts";
import { ProfilingDevice } from "../../device/profiling-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { countParameters } from "../../model/counts.ts";
import { Model } from "../../model/model.ts";
import { presetConfig } from "../../model/presets.ts";
import { fillRows } from "../../model/stored-parameters.ts";
import { parseWeightFormat } from "../../model/weight-format.ts";
import { view } from "../../tensor/view.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import {
  type DecodingTiming,
  momentFormatOf,
  SEED,
  timeDecoding,
  timeTraining,
  VOCAB_SIZE,
} from "./model-cases.ts";

export const COMPARISON_THREADS = 2;
/** Timed steps of one process, after `UNTIMED_STEPS` of either side. */
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

/** A prompt and the tokens after it, by the model that the peer is given as a file. */
export async function runDecodingComparison(
  notation: string,
  numThreads: number,
): Promise<DecodingTiming> {
  const weights = parseWeightFormat(notation);
  assert(weights !== "f32", "peers are compared with models that only infer");
  await using device = await openCpuDevice({ numThreads });
  const config = presetConfig("small", VOCAB_SIZE);
  const options = { gradients: false, seed: null } as const;
  const source = new Model(device, config, { ...options, precision: "f32", seed: SEED });
  const model = new Model(device, config, { ...options, precision: "bf16", weights });
  for (const parameter of model.parameters.list) {
    const values = view(source.parameters.get(parameter.name).value);
    fillRows(parameter, 0, values as Float32Array);
  }
  return timeDecoding(device, model);
}
