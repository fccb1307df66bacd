/** @file `hadal inspect`: what a model is made of, and what memory it takes. */

import type { ModelConfig } from "../../model/config.ts";
import { countParameters, type ParameterCounts } from "../../model/counts.ts";
import { type MemoryPrediction, predictMemory } from "../../model/memory.ts";
import { huggingFaceTensors } from "../../model/names.ts";
import { isScaledRecipe, type PrecisionRecipe } from "../../model/precision-recipe.ts";
import { storedBytes } from "../../model/stored-parameters.ts";
import { parseWeightFormat, type WeightFormat, weightNotation } from "../../model/weight-format.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { PRECISION_RECIPES } from "../../training/recipe/recipes.ts";
import { type RecipeRow, recipeTable } from "../../training/recipe/table.ts";
import { readModelConfig, readStoredFormat } from "../../training/run/checkpoint.ts";
import { readRecipe } from "../../training/run/recipe-file.ts";
import { isRunFolder, resolveCheckpoint } from "../../training/run/run-folder.ts";
import type { inspect } from "../declarations/inspect.ts";
import type { Output } from "../output.ts";
import { runSettings } from "../run-settings.ts";
import type { Run } from "../verb.ts";

/**
 * Positions computed at once whose memory is predicted, for a checkpoint that belongs to no run.
 */
const TOKENS = 4096;
/** Tensors listed; a large model has tens of thousands. */
const LISTED_TENSORS = 40;

/** Formats whose bytes are shown, besides the one that the checkpoint stores. */
const INFERENCE_FORMATS = ["f32", "bf16", "fp8", "int8:g32", "int4:g32"];

const PART_NAMES: Readonly<Partial<Record<keyof ParameterCounts, string>>> = {
  embedding: "embedding",
  head: "output head",
  attention: "attention",
  feedForward: "dense feed-forward",
  routedExperts: "routed experts",
  sharedExperts: "shared experts",
  gates: "gates",
  norms: "norms",
  mtp: "multi-token prediction",
};

/**
 * What a training process of two threads takes besides: Node, generated code, panels, the text
 * being prepared, checkpoints being written, and what of its last huge pages each arena leaves
 * unused. Measured at 317 to 361 MiB (docs/performance.md).
 */
const RUNTIME_BYTES = 320 * 2 ** 20;

/** A training process: the step itself, the moving average beside it, and what runs them. */
interface ProcessMemory extends MemoryPrediction {
  readonly average: number;
  readonly runtime: number;
}

const MEMORY_NAMES: Readonly<Record<keyof ProcessMemory, string>> = {
  values: "parameters (f32)",
  gradients: "gradients (f32)",
  compute: "copies for products",
  optimizer: "the optimizer's moments",
  saved: "kept for the backward pass",
  scratch: "scratch of the largest call",
  weightGrads: "waiting weight gradients",
  average: "moving average (f32)",
  runtime: "Node and its threads, about",
  total: "in all",
};

export const run: Run<typeof inspect> = async (values, { output }) => {
  const { model } = values;
  const path = resolveCheckpoint(model);
  const config = readModelConfig(path);
  const counts = countParameters(config);
  const step = stepOf(model);
  const { tokens } = step;
  const recipe = values.recipe === undefined ? step.recipe : readRecipe(values.recipe);
  const memory = predictProcess(predictMemory(config, recipe, tokens));
  const recipeRows = recipeTable(config, recipe);
  const tensors = huggingFaceTensors(config).map(({ name, shape }) => ({ name, shape }));
  showParameters(output, counts);
  showMemory(output, memory, tokens);
  const stored = readStoredFormat(path);
  const weights = weightBytes(config, counts.total, stored);
  showWeights(output, weights, stored);
  showRecipe(output, recipe, recipeRows);
  output.table([
    ["tensor", "shape"],
    ...tensors.slice(0, LISTED_TENSORS).map(({ name, shape }) => [name, shape.join(" × ")]),
  ]);
  if (tensors.length > LISTED_TENSORS) {
    output.line(`… ${tensors.length - LISTED_TENSORS} more; --json has them all`);
  }
  output.result({
    path,
    config,
    parameters: counts,
    trainingMemory: { tokens, recipe: recipe.name, ...memory },
    inferenceWeights: { stored: weightNotation(stored), bytes: weights },
    recipe: { ...recipe, rows: recipeRows },
    tensors,
  });
};

/** What a run computes at once, and under which recipe. */
function stepOf(path: string): { recipe: PrecisionRecipe; tokens: number } {
  if (!isRunFolder(path)) return { recipe: PRECISION_RECIPES.bf16, tokens: TOKENS };
  const { batch, data, recipe } = runSettings(path);
  return { recipe, tokens: batch.microBatch * data.sequenceLength };
}

function predictProcess(step: MemoryPrediction): ProcessMemory {
  const extra = { average: step.values, runtime: RUNTIME_BYTES };
  return { ...step, ...extra, total: step.total + extra.average + extra.runtime };
}

function showParameters(output: Output, counts: ParameterCounts): void {
  const rows = Object.entries(PART_NAMES).map(([part, name]) => {
    const count = counts[part as keyof ParameterCounts];
    return [name, count.toLocaleString("en"), share(count, counts.total)];
  });
  output.table(
    [
      ["parameters", "count", ""],
      ...rows,
      ["total", counts.total.toLocaleString("en"), ""],
      [
        "active for a token",
        counts.active.toLocaleString("en"),
        share(counts.active, counts.total),
      ],
    ],
    ["left", "right", "right"],
  );
  output.line();
}

function showMemory(output: Output, memory: ProcessMemory, tokens: number): void {
  const rows = Object.entries(MEMORY_NAMES).map(([part, name]) => [
    name,
    `${(memory[part as keyof ProcessMemory] / 2 ** 20).toFixed(1)} MiB`,
  ]);
  const heading = `memory of a training step of ${tokens.toLocaleString("en")} tokens`;
  output.table([[heading, ""], ...rows], ["left", "right"]);
  output.line();
}

/** Bytes of the weights of a model that is only to infer, by the notation of --weights. */
function weightBytes(
  config: ModelConfig,
  numParameters: number,
  stored: WeightFormat,
): Readonly<Record<string, number>> {
  const formats = [...INFERENCE_FORMATS, weightNotation(stored)].map((notation) => {
    const format = parseWeightFormat(notation);
    const bytes = format === "f32" ? DTYPE_BYTES.f32 * numParameters : storedBytes(config, format);
    return [notation, bytes] as const;
  });
  return Object.fromEntries(formats);
}

function showWeights(
  output: Output,
  bytes: Readonly<Record<string, number>>,
  stored: WeightFormat,
): void {
  const rows = Object.entries(bytes).map(([notation, count]) => [
    notation,
    `${(count / 2 ** 20).toFixed(1)} MiB`,
    notation === weightNotation(stored) ? "as stored" : "",
  ]);
  output.table([["weights to infer with (--weights)", "", ""], ...rows], ["left", "right", "left"]);
  output.line();
}

function showRecipe(output: Output, recipe: PrecisionRecipe, rows: readonly RecipeRow[]): void {
  const bytes = (value: number | null): string =>
    value === null ? "" : value.toLocaleString("en", { maximumFractionDigits: 3 });
  const named = (word: string): string => (word === "none" ? "" : word);
  output.table(
    [
      [`recipe ${recipe.name}`, "format", "tile", "scales", "", "bytes/token", "bytes/parameter"],
      ...rows.map((row) => [
        row.tensors,
        row.format,
        named(row.tile),
        named(row.scales),
        row.held,
        bytes(row.bytesPerToken),
        bytes(row.bytesPerParameter),
      ]),
    ],
    ["left", "left", "left", "left", "left", "right", "right"],
  );
  if (isScaledRecipe(recipe)) {
    const { promotionInterval, accumulation } = recipe;
    const every =
      promotionInterval === null ? "never promoted" : `promoted every ${promotionInterval}`;
    output.line(`products: sums ${every} of K, accumulated as ${accumulation}`);
  }
  output.line();
}

function share(count: number, total: number): string {
  return `${((100 * count) / total).toFixed(1)} %`;
}
