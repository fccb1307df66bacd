/**
 * @file `hadal experiment fp8-loss`: one model, data and seed trained under several recipes, and
 * how far each loss curve follows that of bf16.
 *
 * Every variant has its run folder below the experiment's, is resumed where it was interrupted, and
 * is not trained again where it is complete. AdamW, as in the report; validation and the moving
 * average are off, for only the losses of the steps count.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Device } from "../../device/device.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { compareLosses, type LossComparison } from "../../training/metrics/compare-losses.ts";
import type { StepRecord } from "../../training/metrics/record.ts";
import { PRECISION_RECIPES, perTensor } from "../../training/recipe/recipes.ts";
import type { TrainingObserver } from "../../training/run/observer.ts";
import { isRunFolder } from "../../training/run/run-folder.ts";
import { trainRun } from "../../training/run/train-run.ts";
import type { TrainingSettings } from "../../training/settings.ts";
import { drawLineChart } from "./line-chart.ts";

/** The report's bound on the relative error of the loss. */
export const ERROR_LIMIT = 0.0025;

export interface Variant {
  readonly name: string;
  readonly recipe: PrecisionRecipe;
}

/** The variants of the report's comparison; bf16, first, is what the others are compared with. */
export function variantsOf(outlierFactor: number): readonly Variant[] {
  const { bf16, fp8 } = PRECISION_RECIPES;
  const withOutliers = (recipe: PrecisionRecipe): PrecisionRecipe => ({ ...recipe, outlierFactor });
  return [
    { name: "bf16", recipe: bf16 },
    { name: "fp8", recipe: withOutliers(fp8) },
    { name: "per-tensor", recipe: withOutliers(perTensor(fp8)) },
  ];
}

export interface VariantResult {
  readonly name: string;
  readonly run: string;
  readonly losses: readonly number[];
  readonly tokens: readonly number[];
  /** null for the baseline itself. */
  readonly comparison: LossComparison | null;
}

export interface LossExperiment {
  readonly device: Device;
  readonly out: string;
  readonly settings: TrainingSettings;
  readonly variants: readonly Variant[];
  readonly observer: (variant: Variant) => TrainingObserver;
  readonly signal: AbortSignal;
}

/** Train every variant; null if it was interrupted, to be carried on by the same command. */
export async function runLossExperiment(
  experiment: LossExperiment,
): Promise<readonly VariantResult[] | null> {
  const { device, out, variants, observer, signal } = experiment;
  const records: StepRecord[][] = [];
  for (const variant of variants) {
    const run = join(out, variant.name);
    const summary = await trainRun({
      device,
      out: run,
      settings: settingsOf(experiment.settings, variant.recipe),
      resume: isRunFolder(run),
      observer: observer(variant),
      signal,
    });
    if (summary.wasInterrupted) return null;
    records.push(readMetrics(run));
  }
  const baseline = records[0]!.map(({ loss }) => loss);
  return variants.map(({ name }, index) => {
    const losses = records[index]!.map(({ loss }) => loss);
    return {
      name,
      run: join(out, name),
      losses,
      tokens: records[index]!.map(({ tokens }) => tokens),
      comparison: index === 0 ? null : compareLosses(losses, baseline),
    };
  });
}

function settingsOf(settings: TrainingSettings, recipe: PrecisionRecipe): TrainingSettings {
  return {
    ...settings,
    recipe,
    optimizer: { ...settings.optimizer, name: "adamw" },
    average: { decay: 0 },
    evaluation: { ...settings.evaluation, everySteps: 0 },
    checkpoint: { ...settings.checkpoint, keep: 1 },
  };
}

function readMetrics(run: string): StepRecord[] {
  return readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as StepRecord);
}

/** The relative errors over the tokens, in percent, with the report's bound. */
export function drawLossErrors(results: readonly VariantResult[]): string {
  return drawLineChart({
    title: "Training loss against bf16, both smoothed (EMA 0.9)",
    xLabel: "tokens",
    yLabel: "relative error of the loss, %",
    isLogarithmic: false,
    limit: { y: 100 * ERROR_LIMIT, name: "0.25 %" },
    series: results.flatMap(({ name, tokens, comparison }) =>
      comparison === null
        ? []
        : [
            {
              name,
              points: comparison.errors.map((error, at) => [tokens[at]!, 100 * error] as const),
            },
          ],
    ),
  });
}
