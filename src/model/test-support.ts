/**
 * @file What the tests of this folder share: tiny configurations, batches, and central differences.
 *
 * Derivatives are taken along one direction per tensor, the gradient's own plus a random one of the
 * same length, so that a wrong element anywhere shows, by the fourth-order formula
 *     f'(0) ≈ (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h
 * in f64 on the reference kernels. A choice of experts that changes under the perturbation would
 * make f discontinuous: callers compare what was chosen and fail with a sentence instead of a
 * number.
 */
import assert from "node:assert/strict";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import type { Batch } from "./model-types.ts";
import { ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { plainRecipe } from "./precision-recipe.ts";
import { makePositions, makeRopeTables } from "./rope.ts";
import { WeightGradQueue } from "./weight-grad-queue.ts";

/**
 * The smallest model with everything in it: one dense and one MoE layer, compressed query, one
 * shared expert.
 */
export const TINY: ModelConfig = {
  vocabSize: 13,
  hiddenDim: 8,
  numLayers: 2,
  numHeads: 2,
  qLoraRank: 6,
  kvLoraRank: 5,
  qkNopeHeadDim: 4,
  qkRopeHeadDim: 4,
  vHeadDim: 3,
  intermediateDim: 10,
  moeIntermediateDim: 6,
  numRoutedExperts: 8,
  numSharedExperts: 1,
  numExpertsPerToken: 2,
  numExpertGroups: 1,
  numChosenGroups: 1,
  scoring: "sigmoid",
  topkMethod: "noaux_tc",
  normTopkProb: true,
  routedScalingFactor: 2.5,
  firstDenseLayers: 1,
  moeLayerFreq: 1,
  rmsNormEps: 1e-6,
  ropeTheta: 100,
  ropeScaling: null,
  maxPositionEmbeddings: 64,
  numMtpModules: 0,
  tieWordEmbeddings: false,
  initializerRange: 0.4,
  bosTokenId: 0,
  eosTokenId: 1,
  padTokenId: null,
};

/** A device of plain loops on one thread. */
export function openReferenceDevice(): Promise<Device> {
  return openCpuDevice({ kernels: "reference", numThreads: 1 });
}

/** Random tokens for a model. */
export function randomBatch(
  config: ModelConfig,
  { numSequences, seqLength, seed }: { numSequences: number; seqLength: number; seed: number },
): Batch {
  const random = new Random(seed, "batch");
  const numTokens = numSequences * (seqLength + 1 + config.numMtpModules);
  const tokens = Int32Array.from({ length: numTokens }, () => random.below(config.vocabSize));
  return { tokens, numSequences, seqLength };
}

/** Overwrite a tensor with N(0, std²). */
export function fillNormal(tensor: Tensor<FloatType>, random: Random, std = 1): void {
  const values = view(tensor);
  for (let index = 0; index < values.length; index++) values[index] = std * random.normal();
}

/** A pass for layers on their own, in f64. */
export function makePass(
  device: Device,
  config: ModelConfig,
  batch: {
    readonly numSequences: number;
    readonly seqLength: number;
    readonly balanceScale: number;
  },
): Pass {
  const arena = (name: string): Arena => new Arena(device.memory, name);
  const saved = arena("saved");
  const { numSequences, seqLength, balanceScale } = batch;
  const tables = makeRopeTables(saved, config, seqLength, "f64");
  return {
    device,
    floatType: "f64",
    computeType: "f64",
    attention: "exact",
    saved,
    scratch: arena("scratch"),
    weightGrads: new WeightGradQueue(device, arena("weight gradients")),
    numSequences,
    seqLength,
    positions: makePositions(saved, tables, { numSequences, seqLength }),
    balanceScale,
  };
}

/** Parameters in f64, matrices and gains random. */
export function randomParameters(device: Device, config: ModelConfig, seed: number): ParameterSet {
  const arena = new Arena(device.memory, "parameters");
  const options = { recipe: plainRecipe("f64"), gradients: true };
  const parameters = new ParameterSet(device, arena, config, options);
  parameters.initialize(seed, config.initializerRange);
  const random = new Random(seed, "gains");
  for (const { role, value } of parameters.list) if (role === "norm") jitterGain(value, random);
  return parameters;
}

/** Gains other than 1, so that a forgotten gain shows. */
export function jitterGain(gain: Tensor<FloatType>, random: Random): void {
  const values = view(gain);
  for (let index = 0; index < values.length; index++) values[index] = 1 + 0.3 * random.normal();
}

export interface DirectionalCheck {
  /** Of the tensor, for the message. */
  readonly name: string;
  /** What is perturbed, and put back. */
  readonly value: Tensor<FloatType>;
  /** The gradient to check, of the same shape. */
  readonly gradient: Float64Array;
  /** The objective at the present values. */
  readonly objective: () => number;
  readonly seed: number;
}

const STEP = 2e-4;
const RELATIVE_ERROR_MAX = 1e-6;

/** Assert that the gradient agrees with central differences along one direction. */
export function assertGradient(check: DirectionalCheck): void {
  const { name, value, gradient, objective, seed } = check;
  const values = view(value);
  assert.equal(values.length, gradient.length, `${name}: gradient's elements`);
  const kept = Float64Array.from(values);
  const random = new Random(seed, name);
  const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
  const noise = gradient.map(() => random.normal());
  const noiseNorm = Math.sqrt(noise.reduce((sum, x) => sum + x * x, 0));
  const direction = gradient.map(
    (x, index) => (norm === 0 ? 0 : x / norm) + noise[index]! / noiseNorm,
  );
  const at = (distance: number): number => {
    direction.forEach((d, index) => {
      values[index] = kept[index]! + distance * d;
    });
    return objective();
  };
  const near = at(STEP) - at(-STEP);
  const far = at(2 * STEP) - at(-2 * STEP);
  values.set(kept);
  const numeric = (8 * near - far) / (12 * STEP);
  const analytic = direction.reduce((sum, d, index) => sum + d * gradient[index]!, 0);
  const error =
    Math.abs(numeric - analytic) / Math.max(Math.abs(numeric), Math.abs(analytic), 1e-4);
  assert.ok(
    error <= RELATIVE_ERROR_MAX,
    `${name} (seed ${seed}): analytic ${analytic}, numeric ${numeric}, relative error ${error}`,
  );
}
