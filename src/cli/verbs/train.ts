/**
 * @file `hadal train`: settings from preset, file and flags; a run folder with everything that came
 * of it.
 */
import { counted } from "../../base/counted.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { countParameters } from "../../model/counts.ts";
import { readRecipe } from "../../training/run/recipe-file.ts";
import { readRunConfig, readSettingsFile } from "../../training/run/run-folder.ts";
import { type TrainRunSummary, trainRun } from "../../training/run/train-run.ts";
import {
  resolveSettings,
  type SettingsSources,
  type TrainingSettings,
} from "../../training/settings.ts";
import { measureProductPeak } from "../bench/product-peak.ts";
import type { Values } from "../declaration.ts";
import type { train } from "../declarations/train.ts";
import { launchedRanks } from "../ranks/launcher.ts";
import { layoutAsked } from "../ranks/ranks-asked.ts";
import { trainOnThreads, trainUnderMpi } from "../ranks/train-on-ranks.ts";
import { sampleWriter } from "../samples.ts";
import { trainingProgress } from "../training-progress.ts";
import type { Context, Run } from "../verb.ts";

export const run: Run<typeof train> = async (values, context) => {
  const { output } = context;
  const settings = settingsOf(values);
  const summary = await trainSomewhere(values, settings, context);
  if (summary === null) return;
  const { validation, averageValidation } = summary;
  const minutes = (summary.seconds / 60).toFixed(1);
  output.line(
    `${summary.wasInterrupted ? "interrupted" : "done"} after ${counted(summary.steps, "step")}, ` +
      `${summary.tokens.toLocaleString("en")} tokens, ${minutes} minutes`,
  );
  output.line(
    summary.wasInterrupted
      ? `carry on with: npx hadal train --out ${values.out} --resume`
      : `complete with it: npx hadal complete --model ${values.out} --prefix TEXT`,
  );
  const { total, active } = countParameters(settings.model);
  output.result({
    run: summary.run,
    checkpoint: summary.checkpoint,
    steps: summary.steps,
    tokens: summary.tokens,
    seconds: summary.seconds,
    tokensPerSecond: summary.tokensPerSecond,
    bitsPerByte: validation?.bitsPerByte ?? null,
    averageBitsPerByte: averageValidation?.bitsPerByte ?? null,
    parameters: total,
    activeParameters: active,
    wasInterrupted: summary.wasInterrupted,
    averageWaits: summary.averageWaits,
    averageWaitedSeconds: summary.averageWaitedSeconds,
  });
};

/**
 * In this process, on threads of it, or as one of the processes of a launcher; then null follows.
 */
async function trainSomewhere(
  values: Values<typeof train>,
  settings: TrainingSettings,
  { output, interruption, env }: Context,
): Promise<TrainRunSummary | null> {
  const layout = layoutAsked(values, env);
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const run = {
    out: values.out,
    settings,
    resume: values.resume,
    observer: trainingProgress(output, settings.budget.minutes),
    signal: interruption.orderly(),
    peakFlops: measureProductPeak(device, settings.recipe),
  };
  if (layout === null) {
    return await trainRun({ ...run, device, writeSamples: sampleWriter(device) });
  }
  const ranked = { ...run, layout, hasSamples: true };
  if (launchedRanks(env) !== undefined) return await trainUnderMpi(ranked, env);
  return await trainOnThreads({ ...ranked, env });
}

/**
 * A resumed run starts from its own settings; a new one from a preset or a file. Flags come last.
 */
function settingsOf(values: Values<typeof train>): TrainingSettings {
  const preset = values.preset ?? "tiny";
  const { steps, tokens, minutes } = values;
  const hasBudget = steps !== undefined || tokens !== undefined || minutes !== undefined;
  const budget = { steps: steps ?? null, tokens: tokens ?? null, minutes: minutes ?? null };
  const changes = changesOf(values);
  const settings = resolveSettings({
    preset,
    ...(changes === undefined ? {} : { changes }),
    ...(values.recipe === undefined ? {} : { recipe: readRecipe(values.recipe) }),
    assignments: values.set,
  });
  return {
    ...settings,
    ...(values.seed === undefined ? {} : { seed: values.seed }),
    data: values.data.length > 0 ? { ...settings.data, paths: values.data } : settings.data,
    budget: hasBudget ? budget : settings.budget,
  };
}

function changesOf({ resume, out, config }: Values<typeof train>): SettingsSources["changes"] {
  if (resume) return { value: readRunConfig(out), origin: `${out}/config.json` };
  if (config !== undefined) return { value: readSettingsFile(config), origin: config };
  return undefined;
}
