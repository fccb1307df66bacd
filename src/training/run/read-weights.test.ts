/** @file A model that only infers keeps its weights once, and computes what they say. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { Decoder } from "../../inference/decoder.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { Model } from "../../model/model.ts";
import { storedBytes } from "../../model/stored-parameters.ts";
import { randomBatch, TINY } from "../../model/test-support.ts";
import { trainBpe } from "../../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { loadCheckpoint, writeModel } from "./checkpoint.ts";

const merges = trainBpe(["the cat sat on the mat"], { vocabSize: 9 + 256 + 5, numAddedTokens: 9 });
const tokenizer = new Tokenizer(learnedVocabulary(merges));
const CONFIG: ModelConfig = {
  ...TINY,
  vocabSize: tokenizer.vocabSize,
  hiddenDim: 64,
  moeIntermediateDim: 32,
  numMtpModules: 1,
  initializerRange: 0.1,
};
const BATCH = randomBatch(CONFIG, { numSequences: 2, seqLength: 20, seed: 3 });

let folder: string;

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hadal-weights-"));
});

after(() => rmSync(folder, { recursive: true }));

describe("a model that only infers", () => {
  for (const tieWordEmbeddings of [false, true]) {
    const which = tieWordEmbeddings ? "tied embeddings" : "a head of its own";
    it(`takes two bytes a parameter and keeps every bit, with ${which}`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const config = { ...CONFIG, tieWordEmbeddings };
      const path = join(folder, which);
      const trained = new Model(device, config, { precision: "bf16", seed: 5 });
      writeModel(path, { model: trained, tokenizer, dtype: "bf16" });
      const { model: mastered } = loadCheckpoint(device, path);
      const { model } = loadCheckpoint(device, path, { weights: "bf16" });
      assert.deepEqual(model.evaluate(BATCH), mastered.evaluate(BATCH));
      const matrices = 2 * model.parameters.numParameters;
      const gains = model.parameters.list
        .filter(({ role }) => role === "norm")
        .reduce((sum, { shape }) => sum + shape[1], 0);
      assert.equal(storedBytes(config), matrices + 2 * gains);
      // Beside them the arena holds routing biases, RoPE tables, and padding to cache lines.
      const held = model.arenas.model.liveBytes;
      assert.ok(held < 1.1 * storedBytes(config) + 8192, `${held} bytes for ${matrices}`);
      assert.throws(() => model.parameters.get("norm").gradient, /made to infer/);
      assert.throws(() => model.parameters.get("embedding").value, /made to infer/);
    });
  }

  it("decodes nearly as a model with master values does", async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const path = join(folder, "decoded");
    const trained = new Model(device, CONFIG, { precision: "bf16", seed: 6 });
    writeModel(path, { model: trained, tokenizer, dtype: "bf16" });
    const tokens = BATCH.tokens.subarray(0, 21);
    const [expected, logits] = ([undefined, "bf16"] as const).map((weights) => {
      const options = weights === undefined ? {} : { weights };
      const decoder = new Decoder(device, loadCheckpoint(device, path, options).model);
      return decoder.forward([{ cache: decoder.openCache(), tokens, logits: "all" }])[0]!;
    });
    const largest = expected!.reduce((most, logit) => Math.max(most, Math.abs(logit)), 0);
    const distances = expected!.map((logit, index) => Math.abs(logit - logits![index]!));
    const error = distances.reduce((most, distance) => Math.max(most, distance), 0);
    assert.ok(error < 0.03 * largest, `logits up to ${largest} differ by ${error}`);
  });
});
