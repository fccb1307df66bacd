/**
 * @file The gradient of the whole objective against central differences, for every branch of the
 * configuration.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig, RopeScaling } from "./config.ts";
import { Model } from "./model.ts";
import type { StepOptions } from "./model-types.ts";
import {
  assertGradient,
  fillNormal,
  jitterGain,
  openReferenceDevice,
  randomBatch,
  TINY,
} from "./test-support.ts";

const YARN: RopeScaling = {
  type: "yarn",
  factor: 4,
  betaFast: 2,
  betaSlow: 0.25,
  mscale: 1,
  mscaleAllDim: 0.5,
  originalMaxPositionEmbeddings: 16,
};

const DENSE: Partial<ModelConfig> = { numRoutedExperts: 0, firstDenseLayers: 2, qLoraRank: null };
const V2: Partial<ModelConfig> = {
  scoring: "softmax",
  topkMethod: "greedy",
  normTopkProb: false,
  routedScalingFactor: 1,
  numSharedExperts: 2,
  qLoraRank: null,
};

const CASES: Readonly<Record<string, Partial<ModelConfig>>> = {
  "with a compressed query, sigmoid gate and one shared expert": {},
  "without query compression": { qLoraRank: null },
  "with YaRN and different mscale fields": { ropeScaling: YARN },
  "of a dense model with a head of its own": DENSE,
  "of a dense model with tied embeddings": { ...DENSE, tieWordEmbeddings: true },
  "with tied embeddings and two MTP modules": { tieWordEmbeddings: true, numMtpModules: 2 },
  "with one MTP module": { numMtpModules: 1 },
  "of a dense model with an MTP module": { ...DENSE, numMtpModules: 1 },
  "with softmax scores and greedy choice": V2,
  "with softmax scores that are normalised": { ...V2, normTopkProb: true },
  "with groups chosen by their best expert": {
    ...V2,
    topkMethod: "group_limited_greedy",
    numExpertGroups: 4,
    numChosenGroups: 2,
    routedScalingFactor: 4,
  },
  "with groups chosen by their two best experts": { numExpertGroups: 4, numChosenGroups: 2 },
  "with sigmoid weights that are not normalised": { normTopkProb: false },
  "without shared experts": { numSharedExperts: 0 },
  "with every second layer dense": { numLayers: 3, firstDenseLayers: 0, moeLayerFreq: 2 },
  "with every expert chosen": { numExpertsPerToken: 8 },
};

const OPTIONS: StepOptions = {
  mtpWeight: 0.3,
  balanceWeight: 0.05,
  zLoss: 0.02,
  computeGradients: true,
};

for (const [name, overrides] of Object.entries(CASES)) {
  test(`the gradient ${name} agrees with central differences`, async () => {
    await checkModel({ ...TINY, ...overrides }, OPTIONS, 11);
  });
}

test("the gradient without balance loss, MTP weight and z-loss agrees too", async () => {
  const options = { ...OPTIONS, mtpWeight: 0, balanceWeight: 0, zLoss: 0 };
  await checkModel({ ...TINY, numMtpModules: 1 }, options, 12);
});

/** Thrown where a perturbation moves a token to another expert: the objective jumps there. */
class ChoiceChanged extends Error {}

/** Check with the first seed from `firstSeed` on whose tokens stand clear of another choice. */
async function checkModel(
  config: ModelConfig,
  options: StepOptions,
  firstSeed: number,
): Promise<void> {
  for (let seed = firstSeed; seed < firstSeed + 5; seed++) {
    try {
      await checkSeed(config, options, seed);
      return;
    } catch (error) {
      if (!(error instanceof ChoiceChanged)) throw error;
    }
  }
  assert.fail(`no seed from ${firstSeed} on keeps its choice of experts`);
}

async function checkSeed(config: ModelConfig, options: StepOptions, seed: number): Promise<void> {
  await using device = await openReferenceDevice();
  const model = new Model(device, config, { precision: "f32", floatType: "f64", seed });
  const random = new Random(seed, "state");
  for (const { bias } of model.gateBiases) fillNormal(bias, random, 0.1);
  for (const { role, value } of model.parameters.list) {
    if (role === "norm") jitterGain(value, random);
  }
  const batch = randomBatch(config, { numSequences: 2, seqLength: 5, seed });
  const lossScale = 0.5;
  const result = model.forwardBackward(batch, { ...options, lossScale });
  const chosen = JSON.stringify(result.expertLoad.map((load) => [...load]));
  const objective = (): number => {
    const again = model.forwardBackward(batch, { ...options, computeGradients: false });
    const now = JSON.stringify(again.expertLoad.map((load) => [...load]));
    if (now !== chosen) throw new ChoiceChanged();
    return again.objective * lossScale;
  };
  assert.equal(objective(), result.objective * lossScale, "the loss does not depend on gradients");
  for (const { name, value, gradient } of model.parameters.list) {
    assertGradient({ name, value, gradient: Float64Array.from(view(gradient)), objective, seed });
  }
}
