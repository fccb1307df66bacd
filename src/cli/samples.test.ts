/** @file Samples of a model in training are written however many tokens are asked for. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { TINY } from "../model/test-support.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { sampleWriter } from "./samples.ts";

test("a sample as long as the context, or longer, ends with the context", async () => {
  const tokenizer = new Tokenizer(
    learnedVocabulary({ left: new Int32Array(0), right: new Int32Array(0) }),
  );
  const { vocabSize } = tokenizer;
  await using device = await openCpuDevice({ numThreads: 1 });
  const config = { ...TINY, vocabSize, maxPositionEmbeddings: 64 };
  const model = new Model(device, config, { precision: "f32", seed: 1, gradients: false });
  const write = sampleWriter(device);
  for (const tokensMax of [8, 63, 64, 1_000_000]) {
    const context = { step: 1, model, tokenizer, prompts: ["let x", ""], tokensMax };
    const samples = await write(context);
    assert.deepEqual(
      samples.map(({ prompt }) => prompt),
      ["let x", ""],
    );
  }
});
