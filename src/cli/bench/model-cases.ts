/**
 * @file What `hadal bench train` and `hadal bench decode` measure: whole steps and whole tokens of
 * the small preset.
 */

import { median } from "../../base/median.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { ProfilingDevice } from "../../device/profiling-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Model } from "../../model/model.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { type Preset, presetConfig } from "../../model/presets.ts";
import { Arena } from "../../tensor/arena.ts";
import { flopsPerToken } from "../../training/flops.ts";
import { AdamW, type MomentFormat } from "../../training/optimizer/adamw.ts";
import { clipScale, normOf, squaresOf } from "../../training/optimizer/clip.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import { wholeOf } from "../../training/spans.ts";
import type { Peaks } from "./peaks.ts";
import type { BenchRow } from "./row.ts";

export const VOCAB_SIZE = 4096;
export const SEED = 1;

/** The batch of the PyTorch comparison: 16 sequences of 256. */
const TRAIN_BATCH = { numSequences: 16, seqLength: 256 };
const TRAIN_STEPS = 7;
/** Steps before those that are timed: code is generated and compiled, memory is met first. */
export const UNTIMED_STEPS = 3;
/** Steps after those, whose launches are timed. */
const PROFILED_STEPS = 2;
export const PROMPT_TOKENS = 256;
export const DECODED_TOKENS = 64;
const DECODE_ROUNDS = 5;

export interface ModelCase {
  readonly name: "train step" | "decode" | "prompt";
  readonly preset: Preset;
  readonly recipe: RecipeName;
  readonly kernels: "x64" | "wasm";
  readonly numThreads: number;
}

function modelCase(
  name: ModelCase["name"],
  preset: Preset,
  recipe: RecipeName,
  kernels: ModelCase["kernels"],
  numThreads: number,
): ModelCase {
  return { name, preset, recipe, kernels, numThreads };
}

export const MODEL_CASES: readonly ModelCase[] = [
  modelCase("train step", "small", "fp8", "x64", 2),
  modelCase("train step", "small", "bf16", "x64", 2),
  modelCase("train step", "small", "f32", "x64", 2),
  modelCase("train step", "small", "bf16", "x64", 1),
  modelCase("train step", "tiny", "fp8", "x64", 2),
  modelCase("train step", "tiny", "bf16", "x64", 2),
  modelCase("train step", "tiny", "f32", "wasm", 2),
  ...(["decode", "prompt"] as const).flatMap((name) => [
    modelCase(name, "small", "bf16", "x64", 2),
    modelCase(name, "small", "f32", "x64", 2),
    modelCase(name, "tiny", "bf16", "x64", 1),
  ]),
];

function randomTokens(count: number): Int32Array {
  const random = new Random(SEED, "bench tokens");
  return Int32Array.from({ length: count }, () => random.below(VOCAB_SIZE));
}

export async function runModelCase(modelCase_: ModelCase, peaks: Peaks): Promise<BenchRow> {
  const { name, preset, recipe, kernels, numThreads } = modelCase_;
  const precision = PRECISION_RECIPES[recipe];
  await using base = await openCpuDevice({ kernels, numThreads });
  const device = new ProfilingDevice(base);
  const config = presetConfig(preset, VOCAB_SIZE);
  const gradients = name === "train step";
  const model = new Model(device, config, { precision, seed: SEED, gradients });
  model.parameters.refreshCompute();
  const implementation = `${kernels} ×${numThreads} ${recipe}`;
  if (name !== "train step") {
    const timed = timeDecoding(device, model);
    const tokensPerSecond = timed[`${name}TokensPerSecond`];
    return { name, shape: decodingShape(name, preset), implementation, tokensPerSecond };
  }
  const timed = timeTraining(device, model, {
    steps: TRAIN_STEPS,
    moments: momentFormatOf(precision),
  });
  const { tokensPerStep, secondsPerStep, productShare, attentionShare } = timed;
  const { numSequences, seqLength } = TRAIN_BATCH;
  const tokensPerSecond = tokensPerStep / secondsPerStep;
  const flops = flopsPerToken(config, seqLength, { attention: "causal", withMtp: true });
  const gflops = (flops * tokensPerSecond) / 1e9;
  const peak =
    kernels === "wasm"
      ? peaks.wasmF32Gflops
      : recipe !== "f32"
        ? peaks.bf16Gflops
        : peaks.f32Gflops;
  return {
    name,
    shape:
      `${preset}, ${numSequences}×${seqLength}; ${percent(productShare)} products, ` +
      `${percent(attentionShare)} attention`,
    implementation,
    gflops,
    tokensPerSecond,
    ...(peak === null ? {} : { shareOfPeak: gflops / peak / numThreads }),
  };
}

/** What a row about decoding or a prompt says of its sizes. */
export function decodingShape(name: "decode" | "prompt", preset: Preset): string {
  return name === "decode"
    ? `${preset}, after ${PROMPT_TOKENS}`
    : `${preset}, ${PROMPT_TOKENS} tokens`;
}

/** The moments that a recipe keeps. */
export function momentFormatOf(recipe: PrecisionRecipe): MomentFormat {
  return recipe.tensors.moment.format === "bf16" ? "bf16" : "f32";
}

export interface StepTiming {
  readonly tokensPerStep: number;
  readonly secondsPerStep: number;
  /** Of the time of steps whose launches are timed one by one. */
  readonly productShare: number;
  readonly attentionShare: number;
}

/**
 * Whole steps: gradients cleared and computed, their norm taken, AdamW, the bf16 copies made again.
 */
export function timeTraining(
  device: ProfilingDevice,
  model: Model,
  { steps, moments }: { readonly steps: number; readonly moments: MomentFormat },
): StepTiming {
  const { numSequences, seqLength } = TRAIN_BATCH;
  const width = seqLength + 1 + model.config.numMtpModules;
  const batch = { ...TRAIN_BATCH, tokens: randomTokens(numSequences * width) };
  const options = { mtpWeight: 0.3, balanceWeight: 1e-4, zLoss: 0, computeGradients: true };
  const arena = new Arena(device.memory, "optimizer");
  const hyper = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
  const format = { format: moments, seed: SEED };
  const whole = wholeOf(model.parameters);
  const optimizer = new AdamW(device, arena, whole, hyper, format);
  const names = model.parameters.list.map(({ name }) => name);
  const takeStep = (step: number): void => {
    model.parameters.zeroGradients();
    model.forwardBackward(batch, options);
    const norm = normOf(squaresOf(device, arena, whole, names));
    optimizer.update({ learningRate: 1e-4, gradientScale: clipScale(norm, 1), step });
    model.parameters.refreshCompute();
  };
  const timeStep = (step: number): number => {
    const start = performance.now();
    takeStep(step);
    return (performance.now() - start) / 1000;
  };
  for (let step = 1; step <= UNTIMED_STEPS; step++) takeStep(step);
  const seconds = Array.from({ length: steps }, (_, index) => timeStep(UNTIMED_STEPS + 1 + index));
  let total = 0;
  const launches = device.measure(() => {
    for (let step = 1; step <= PROFILED_STEPS; step++) {
      total += timeStep(UNTIMED_STEPS + steps + step);
    }
  });
  const share = (pattern: RegExp): number => {
    let sum = 0;
    for (const [key, spent] of launches) if (pattern.test(key)) sum += spent;
    return sum / total;
  };
  return {
    tokensPerStep: numSequences * seqLength,
    secondsPerStep: median(seconds),
    productShare: share(/^(matmul|groupedMatmul|scaledMatmul|groupedScaledMatmul)\//),
    attentionShare: share(/^causalAttention/),
  };
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}

/** Medians over rounds of one prompt and the tokens after it, one sequence. */
export interface DecodingTiming {
  readonly promptTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
}

/**
 * Rounds of a prompt and of tokens after it, after one round that generates code and fills caches.
 */
export function timeDecoding(device: Device, model: Model): DecodingTiming {
  const decoder = new Decoder(device, model, PROMPT_TOKENS + DECODED_TOKENS);
  const cache = decoder.openCache();
  const tokens = randomTokens(PROMPT_TOKENS + DECODED_TOKENS);
  const [prompt, decode]: [number[], number[]] = [[], []];
  for (let round = 0; round <= DECODE_ROUNDS; round++) {
    cache.truncate(0);
    const promptStart = performance.now();
    decoder.forward([{ cache, tokens: tokens.subarray(0, PROMPT_TOKENS), logits: "last" }]);
    const decodeStart = performance.now();
    for (let at = PROMPT_TOKENS; at < tokens.length; at++) {
      decoder.forward([{ cache, tokens: tokens.subarray(at, at + 1), logits: "last" }]);
    }
    prompt.push(PROMPT_TOKENS / ((decodeStart - promptStart) / 1000));
    decode.push(DECODED_TOKENS / ((performance.now() - decodeStart) / 1000));
  }
  return {
    promptTokensPerSecond: median(prompt.slice(1)),
    decodeTokensPerSecond: median(decode.slice(1)),
  };
}
