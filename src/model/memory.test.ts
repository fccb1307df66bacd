/** @file The prediction of memory against what the arenas measured. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { ModelConfig } from "./config.ts";
import { activationBytesPerToken, predictMemory } from "./memory.ts";
import { Model } from "./model.ts";
import type { Precision } from "./model-types.ts";
import { openReferenceDevice, randomBatch, TINY } from "./test-support.ts";

const WIDER: ModelConfig = {
  ...TINY,
  vocabSize: 64,
  hiddenDim: 32,
  numLayers: 3,
  qLoraRank: 16,
  kvLoraRank: 16,
  qkNopeHeadDim: 8,
  vHeadDim: 8,
  intermediateDim: 48,
  moeIntermediateDim: 16,
  numMtpModules: 1,
};
const CASES: readonly (readonly [string, ModelConfig, Precision])[] = [
  ["a small model in f32", WIDER, "f32"],
  ["a small model in bf16", WIDER, "bf16"],
  ["a dense model", { ...WIDER, numRoutedExperts: 0, numMtpModules: 0, qLoraRank: null }, "f32"],
  ["a model whose logits are the most of it", { ...WIDER, vocabSize: 2000 }, "bf16"],
  ["many experts a token", { ...WIDER, numExpertsPerToken: 6, numSharedExperts: 2 }, "bf16"],
];

for (const [name, config, precision] of CASES) {
  test(`the prediction for ${name} is within 15% of each arena's peak`, async () => {
    await using device = await openReferenceDevice();
    const model = new Model(device, config, { precision, seed: 1 });
    const shape = { numSequences: 2, seqLength: 32, seed: 1 };
    const options = { mtpWeight: 0.3, balanceWeight: 0, zLoss: 0, computeGradients: true };
    model.forwardBackward(randomBatch(config, shape), options);
    const predicted = predictMemory(config, precision, 64);
    assert.equal(predicted.saved, 64 * activationBytesPerToken(config, precision));
    const { values, gradients, compute } = predicted;
    const pairs = [
      ["saved", predicted.saved],
      ["scratch", predicted.scratch],
      ["weightGrads", predicted.weightGrads],
    ] as const;
    for (const [arena, expected] of pairs) {
      const measured = model.arenas[arena].peakBytes;
      const error = Math.abs(measured - expected) / expected;
      assert.ok(error < 0.15, `${arena}: predicted ${expected}, measured ${measured}`);
    }
    // RoPE tables and routing biases come on top.
    assert.ok(model.arenas.model.peakBytes >= values + gradients + compute);
  });
}
