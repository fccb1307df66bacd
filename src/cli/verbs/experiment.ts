/** @file `hadal experiment`: the claims of the FP8 framework, tried on this machine. */
import { join } from "node:path";
import { makeDirectories, writeFileAtomically } from "../../checkpoint/atomic.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { resolveSettings, type TrainingSettings } from "../../training/settings.ts";
import type { Values } from "../declaration.ts";
import type { experiment } from "../declarations/experiment.ts";
import { drawAccumulation, intervalName, measureAccumulation } from "../experiment/accumulation.ts";
import {
  drawLossErrors,
  ERROR_LIMIT,
  runLossExperiment,
  type VariantResult,
  variantsOf,
} from "../experiment/fp8-loss.ts";
import type { Output } from "../output.ts";
import { installedDeclarations } from "../quickstart/installed-declarations.ts";
import { trainingProgress } from "../training-progress.ts";
import type { Run } from "../verb.ts";

type Context = Parameters<Run<typeof experiment>>[1];

export const run: Run<typeof experiment> = async (values, context) => {
  makeDirectories(values.out);
  if (values.what === "accumulation") await runAccumulation(values, context.output);
  else await runFp8Loss(values, context);
};

async function runAccumulation(values: Values<typeof experiment>, output: Output): Promise<void> {
  const errors = await measureAccumulation(values.seed);
  const percent = (value: number): string => `${(100 * value).toPrecision(3)} %`;
  output.table(
    [
      ["data", "K", "promoted", "relative error", "largest"],
      ...errors.map(({ data, depth, interval, relative, largest }) => [
        data,
        String(depth),
        intervalName(interval),
        percent(relative),
        data === "positive" ? percent(largest) : "",
      ]),
    ],
    ["left", "right", "left", "right", "right"],
  );
  const picture = join(values.out, "accumulation.svg");
  writeFileAtomically(picture, drawAccumulation(errors));
  output.line(`drawn: ${picture}`);
  output.result({
    picture,
    errors: errors.map((error) => ({
      ...error,
      interval: error.interval === Infinity ? null : error.interval,
    })),
  });
}

async function runFp8Loss(
  values: Values<typeof experiment>,
  { output, interruption, env }: Context,
): Promise<void> {
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const results = await runLossExperiment({
    device,
    out: values.out,
    settings: settingsOf(values),
    variants: variantsOf(values["inject-outliers"] ?? 0),
    observer: ({ name }) => {
      output.line(output.style("bold", name));
      return trainingProgress(output, null);
    },
    signal: interruption.orderly(),
  });
  if (results === null) {
    output.line("interrupted; the same command carries on");
    output.result({ wasInterrupted: true });
    return;
  }
  const picture = join(values.out, "fp8-loss.svg");
  writeFileAtomically(picture, drawLossErrors(results));
  showLosses(output, results);
  output.line(`drawn: ${picture}`);
  const variants = results.map(({ name, run, losses, comparison }) => ({
    ...{ name, run, steps: losses.length },
    ...(comparison === null
      ? {}
      : { largest: comparison.largest, mean: comparison.mean, last: comparison.last }),
  }));
  const result = { picture, limit: ERROR_LIMIT, variants };
  writeFileAtomically(join(values.out, "result.json"), `${JSON.stringify(result, null, 2)}\n`);
  output.result(result);
}

function settingsOf(values: Values<typeof experiment>): TrainingSettings {
  const settings = resolveSettings({ preset: values.preset, assignments: values.set });
  const paths = values.data.length > 0 ? values.data : installedDeclarations();
  return {
    ...settings,
    seed: values.seed,
    data: { ...settings.data, paths },
    budget: { steps: null, tokens: values.tokens, minutes: null },
  };
}

function showLosses(output: Output, results: readonly VariantResult[]): void {
  const percent = (value: number): string => `${(100 * value).toFixed(3)} %`;
  output.table(
    [
      ["", "last loss", "error at the end", "mean", "largest"],
      ...results.map(({ name, losses, comparison }) => [
        name,
        losses[losses.length - 1]!.toFixed(4),
        ...(comparison === null
          ? ["", "", ""]
          : [comparison.last, comparison.mean, comparison.largest].map(percent)),
      ]),
    ],
    ["left", "right", "right", "right", "right"],
  );
  output.line("errors of the smoothed loss against bf16, after the first tenth");
}
