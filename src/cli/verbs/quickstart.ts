/**
 * @file `hadal quickstart`: a tokenizer learned, a model trained, measured against compressors and
 * shown at work, on real code and with nothing to prepare.
 */
import { existsSync } from "node:fs";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { countParameters } from "../../model/counts.ts";
import { activationBytesPerToken } from "../../model/memory.ts";
import { openCorpus } from "../../training/data/corpus.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import { trainRun } from "../../training/run/train-run.ts";
import { resolveSettings, type TrainingSettings } from "../../training/settings.ts";
import { measureProductPeak } from "../bench/product-peak.ts";
import { type CompressedBytes, compressedBytes } from "../compressors.ts";
import type { Values } from "../declaration.ts";
import type { quickstart } from "../declarations/quickstart.ts";
import type { Output } from "../output.ts";
import { installedDeclarations } from "../quickstart/installed-declarations.ts";
import { showCompletions } from "../quickstart/show.ts";
import { layoutAsked } from "../ranks/ranks-asked.ts";
import { trainOnThreads } from "../ranks/train-on-ranks.ts";
import { LOCAL_SERVING, serveModels } from "../serve-model.ts";
import { trainingProgress } from "../training-progress.ts";
import type { Context, Run } from "../verb.ts";

export const run: Run<typeof quickstart> = async (values, context) => {
  const out = values.out ?? freeFolder("runs/quickstart");
  const isTrained = await trainAndShow(values, out, context);
  if (isTrained && !values["no-serve"] && context.output.isInteractive) {
    await serveTrained(out, context);
  }
};

/** Whether it came to its end. */
async function trainAndShow(
  values: Values<typeof quickstart>,
  out: string,
  { output, interruption, env }: Context,
): Promise<boolean> {
  const layout = layoutAsked(values, {});
  output.line(
    output.style("bold", "Hadal: a DeepSeek-V3 model, learned from scratch on this machine"),
  );
  output.line();
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const settings = settingsOf(values, chooseRecipe(device));
  const run = {
    out,
    settings,
    resume: false,
    observer: trainingProgress(output, values.minutes),
    signal: interruption.orderly(),
    peakFlops: measureProductPeak(device, settings.recipe),
  };
  const summary =
    layout === null
      ? await trainRun({ ...run, device })
      : await trainOnThreads({ ...run, layout, hasSamples: false, env });
  if (summary.wasInterrupted) {
    output.line(`interrupted; carry on with: npx hadal train --out ${out} --resume`);
    output.result({ run: summary.run, wasInterrupted: true });
    return false;
  }
  const heldOut = await readHeldOut(settings);
  const sizes = await compressedBytes(new TextEncoder().encode(heldOut.join("")));
  const bytes = heldOut.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
  const bitsPerByte = summary.validation?.bitsPerByte ?? null;
  showMeasures(output, { bytes, bitsPerByte, sizes });
  const memory = showMemory(output, settings);
  await showCompletions(output, device, { run: out, heldOut });
  sayWhatNext(output, out);
  const { total, active } = countParameters(settings.model);
  output.result({
    bitsPerByte,
    xzBitsPerByte: perByte(sizes.xz, bytes),
    bzip2BitsPerByte: perByte(sizes.bzip2, bytes),
    tokensPerSecond: summary.tokensPerSecond,
    seconds: summary.seconds,
    parameters: total,
    activeParameters: active,
    recipe: settings.recipe.name,
    ...memory,
    run: summary.run,
  });
  return true;
}

/** The last thing: the model answers until Ctrl-C. */
async function serveTrained(out: string, context: Context): Promise<void> {
  const { output } = context;
  const options = { ...LOCAL_SERVING, models: [out], isPortFree: true };
  await serveModels(options, context, ({ address, names: [name], curl }) => {
    output.line();
    output.line(`serving ${name} at ${output.style("bold", address)} until Ctrl-C`);
    output.line(
      "a page to chat is there, for models that have seen chats; this one has seen code:",
    );
    output.line();
    for (const line of curl) output.line(line);
    output.line();
  });
}

/** FP8 where machine code multiplies it; in WebAssembly a step takes up to a third longer. */
function chooseRecipe(device: Device): RecipeName {
  const report = device.reports().find(({ key }) => key === "quantizeTiles/f32.e4m3");
  return report?.target === "x64" ? "fp8" : "bf16";
}

function settingsOf(values: Values<typeof quickstart>, recipe: RecipeName): TrainingSettings {
  const settings = resolveSettings({ preset: "tiny" });
  return {
    ...settings,
    recipe: PRECISION_RECIPES[recipe],
    data: {
      ...settings.data,
      paths: values.data === undefined ? installedDeclarations() : [values.data],
    },
    budget: { steps: null, tokens: null, minutes: values.minutes },
  };
}

/**
 * The name itself, or the first of name-2, name-3 … that is free: a start never overwrites an
 * earlier one.
 */
function freeFolder(name: string): string {
  for (let number = 1; ; number++) {
    const folder = number === 1 ? name : `${name}-${number}`;
    if (!existsSync(folder)) return folder;
  }
}

/** The texts that training has not seen: the same split, by the same rule. */
async function readHeldOut({ data }: TrainingSettings): Promise<string[]> {
  const { paths, heldOutFraction } = data;
  const corpus = await openCorpus({ paths, heldOutFraction });
  const texts: string[] = [];
  for await (const { text } of corpus.documents("heldOut")) texts.push(text);
  return texts;
}

function showMeasures(
  output: Output,
  measures: { bytes: number; bitsPerByte: number | null; sizes: CompressedBytes },
): void {
  const { bytes, bitsPerByte, sizes } = measures;
  const figure = (value: number | null): string =>
    value === null ? "not available" : value.toFixed(3);
  output.line();
  output.table(
    [
      [`${bytes.toLocaleString("en")} bytes of held-out text`, "bits per byte"],
      ["this model", figure(bitsPerByte)],
      [`xz -9e (${sizes.how.xz})`, figure(perByte(sizes.xz, bytes))],
      [`bzip2 -9 (${sizes.how.bzip2})`, figure(perByte(sizes.bzip2, bytes))],
    ],
    ["left", "right"],
  );
}

/** What the recipe keeps for the backward pass, beside what bf16 would have kept. */
function showMemory(
  output: Output,
  { model, recipe }: TrainingSettings,
): { activationBytesPerToken: number; bf16ActivationBytesPerToken: number } {
  const [ours, bf16] = [recipe, PRECISION_RECIPES.bf16].map((of) =>
    activationBytesPerToken(model, of),
  ) as [number, number];
  if (recipe.name === "fp8") {
    const kib = (bytes: number): string => (bytes / 1024).toFixed(1);
    output.line();
    output.line(
      `trained in FP8: ${kib(ours)} KiB of activations kept a token, ${kib(bf16)} in bf16; ` +
        "what it costs the loss is measured in docs/fp8.md",
    );
  }
  return { activationBytesPerToken: ours, bf16ActivationBytesPerToken: bf16 };
}

function perByte(compressed: number | null, bytes: number): number | null {
  return compressed === null || bytes === 0 ? null : (8 * compressed) / bytes;
}

function sayWhatNext(output: Output, out: string): void {
  output.line();
  output.line("next:");
  output.line(`  npx hadal serve --model ${out}`);
  output.line(`  npx hadal complete --model ${out} --prefix "export interface"`);
  output.line(`  npx hadal inspect ${out}`);
  output.line("  npx hadal quickstart --data YOUR-FOLDER --minutes 10");
}
