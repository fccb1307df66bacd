/** @file The expert load of decoding is that of the training pass over the same tokens. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { randomBatch, TINY } from "../model/test-support.ts";
import { Decoder } from "./decoder.ts";

const CONFIG = { ...TINY, numLayers: 3, firstDenseLayers: 1, numMtpModules: 1 };
const LENGTH = 40;

describe("expert load", () => {
  it("is what training counts, in any chunks, replayed passes included", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    const options = { precision: "f32", floatType: "f64", seed: 5 } as const;
    const model = new Model(device, CONFIG, options);
    const batch = randomBatch(CONFIG, { numSequences: 1, seqLength: LENGTH, seed: 9 });
    const step = { mtpWeight: 0, balanceWeight: 0, zLoss: 0, computeGradients: false };
    const { expertLoad } = model.forwardBackward(batch, step);
    const expected = expertLoad.slice(0, 2).map((load) => {
      return (Math.max(...load) * load.length) / load.reduce((sum, each) => sum + each, 0);
    });
    for (const chunk of [LENGTH, 1, 7]) {
      const decoder = new Decoder(device, model);
      assert.deepEqual(decoder.expertLoad.layerIndexes, [1, 2]);
      assert.deepEqual(decoder.expertLoad.maxOverMean(), [1, 1]);
      const cache = decoder.openCache();
      for (let start = 0; start < LENGTH; start += chunk) {
        const tokens = batch.tokens.subarray(start, Math.min(LENGTH, start + chunk));
        decoder.forward([{ cache, tokens, logits: "none" }]);
      }
      assert.deepEqual(decoder.expertLoad.maxOverMean(), expected, `chunks of ${chunk}`);
    }
  });
});
