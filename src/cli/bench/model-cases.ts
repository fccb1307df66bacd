/** @file What `hadal bench train` and `hadal bench decode` measure: whole steps and whole tokens of the small preset. */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { ProfilingDevice } from "../../device/profiling-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Model } from "../../model/model.ts";
import type { Precision } from "../../model/model-types.ts";
import { type Preset, presetConfig } from "../../model/presets.ts";
import { flopsPerToken } from "../../training/flops.ts";
import type { Peaks } from "./peaks.ts";
import type { BenchRow } from "./row.ts";
import { median } from "./timing.ts";

const VOCAB_SIZE = 4096;
const SEED = 1;

/** The batch of the PyTorch comparison: 16 sequences of 256. */
const TRAIN_BATCH = { numSequences: 16, seqLength: 256 };
const TRAIN_STEPS = 7;
const PROMPT_TOKENS = 256;
const DECODED_TOKENS = 64;
const DECODE_ROUNDS = 5;

export interface ModelCase {
  readonly name: "train step" | "decode" | "prompt";
  readonly preset: Preset;
  readonly precision: Precision;
  readonly kernels: "x64" | "wasm";
  readonly numThreads: number;
}

function modelCase(
  name: ModelCase["name"],
  preset: Preset,
  precision: Precision,
  kernels: ModelCase["kernels"],
  numThreads: number,
): ModelCase {
  return { name, preset, precision, kernels, numThreads };
}

export const MODEL_CASES: readonly ModelCase[] = [
  modelCase("train step", "small", "bf16", "x64", 2),
  modelCase("train step", "small", "f32", "x64", 2),
  modelCase("train step", "small", "bf16", "x64", 1),
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
  const { name, preset, precision, kernels, numThreads } = modelCase_;
  await using base = await openCpuDevice({ kernels, numThreads });
  const device = new ProfilingDevice(base);
  const config = presetConfig(preset, VOCAB_SIZE);
  const gradients = name === "train step";
  const model = new Model(device, config, { precision, seed: SEED, gradients });
  model.parameters.refreshCompute();
  const implementation = `${kernels} ×${numThreads} ${precision}`;
  if (name !== "train step") {
    const tokensPerSecond = timeDecoding(device, model, name);
    const shape =
      name === "decode"
        ? `${preset}, after ${PROMPT_TOKENS}`
        : `${preset}, ${PROMPT_TOKENS} tokens`;
    return { name, shape, implementation, tokensPerSecond };
  }
  const { secondsPerStep, matmulShare } = timeTraining(device, model);
  const { numSequences, seqLength } = TRAIN_BATCH;
  const tokensPerSecond = (numSequences * seqLength) / secondsPerStep;
  const flops = flopsPerToken(config, seqLength, { attention: "causal", withMtp: true });
  const gflops = (flops * tokensPerSecond) / 1e9;
  const peak =
    kernels === "wasm"
      ? peaks.wasmF32Gflops
      : precision === "bf16"
        ? peaks.bf16Gflops
        : peaks.f32Gflops;
  return {
    name,
    shape: `${preset}, ${numSequences}×${seqLength}; ${(100 * matmulShare).toFixed(0)} % in products`,
    implementation,
    gflops,
    tokensPerSecond,
    ...(peak === null ? {} : { shareOfPeak: gflops / peak / numThreads }),
  };
}

/** Forward and backward; the optimizer adds a few percent and is measured as `adamw` among the kernels. */
function timeTraining(
  device: ProfilingDevice,
  model: Model,
): { secondsPerStep: number; matmulShare: number } {
  const { numSequences, seqLength } = TRAIN_BATCH;
  const width = seqLength + 1 + model.config.numMtpModules;
  const batch = { ...TRAIN_BATCH, tokens: randomTokens(numSequences * width) };
  const options = { mtpWeight: 0.3, balanceWeight: 1e-4, zLoss: 0, computeGradients: true };
  model.forwardBackward(batch, options);
  device.reset();
  const seconds: number[] = [];
  for (let step = 0; step < TRAIN_STEPS; step++) {
    const start = performance.now();
    model.forwardBackward(batch, options);
    seconds.push((performance.now() - start) / 1000);
  }
  const total = seconds.reduce((sum, value) => sum + value, 0);
  let products = 0;
  for (const [key, spent] of device.seconds) {
    if (/^(matmul|groupedMatmul|causalAttention)/.test(key)) products += spent;
  }
  return { secondsPerStep: median(seconds), matmulShare: products / total };
}

function timeDecoding(device: Device, model: Model, name: "decode" | "prompt"): number {
  const decoder = new Decoder(device, model);
  const cache = decoder.openCache(PROMPT_TOKENS + DECODED_TOKENS);
  const tokens = randomTokens(PROMPT_TOKENS + DECODED_TOKENS);
  const rates: number[] = [];
  for (let round = 0; round <= DECODE_ROUNDS; round++) {
    cache.truncate(0);
    const promptStart = performance.now();
    decoder.forward([{ cache, tokens: tokens.subarray(0, PROMPT_TOKENS), logits: "last" }]);
    const decodeStart = performance.now();
    if (name === "prompt") {
      rates.push(PROMPT_TOKENS / ((decodeStart - promptStart) / 1000));
      continue;
    }
    for (let at = PROMPT_TOKENS; at < tokens.length; at++) {
      decoder.forward([{ cache, tokens: tokens.subarray(at, at + 1), logits: "last" }]);
    }
    rates.push(DECODED_TOKENS / ((performance.now() - decodeStart) / 1000));
  }
  // The first round generates code and fills caches.
  return median(rates.slice(1));
}
