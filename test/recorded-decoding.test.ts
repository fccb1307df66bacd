/**
 * @file Under every recipe and in every format of weights, tokens have the same bits in passes that
 * are replayed as in those that are run once.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../src/base/random.ts";
import { Decoder } from "../src/inference/decoder.ts";
import { openCpuDevice } from "../src/kernels/cpu.ts";
import { Model } from "../src/model/model.ts";
import { presetConfig } from "../src/model/presets.ts";
import { fillRows } from "../src/model/stored-parameters.ts";
import { parseWeightFormat, type WeightFormat } from "../src/model/weight-format.ts";
import { fillFrom, view } from "../src/tensor/view.ts";
import { PRECISION_RECIPES } from "../src/training/recipe/recipes.ts";

const NUM_TOKENS = 140;

const MODELS = {
  ...Object.fromEntries(
    Object.entries(PRECISION_RECIPES).map(([name, precision]) => [name, { precision }]),
  ),
  ...Object.fromEntries(
    ["bf16", "fp8", "int8", "int4:g64a"].map((name) => [
      `weights in ${name}`,
      { precision: PRECISION_RECIPES.bf16, weights: parseWeightFormat(name) as WeightFormat },
    ]),
  ),
};

for (const [name, options] of Object.entries(MODELS)) {
  test(`replayed and single passes give the same bits: ${name}`, async () => {
    await using device = await openCpuDevice({ numThreads: 2 });
    const config = { ...presetConfig("tiny", 300), numLayers: 2 };
    const source = new Model(device, config, { precision: "f32", seed: 3, gradients: false });
    const model = new Model(device, config, { ...options, seed: null, gradients: false });
    for (const parameter of model.parameters.list) {
      const values = view(source.parameters.get(parameter.name).value) as Float32Array;
      if (model.weights === null) fillFrom(parameter.value, values);
      else fillRows(parameter, 0, values);
    }
    if (model.weights === null) model.parameters.refreshCompute();
    const decoder = new Decoder(device, model);
    const random = new Random(7, name);
    const texts = [0, 1].map(() =>
      Int32Array.from({ length: NUM_TOKENS }, () => random.below(300)),
    );
    const whole = texts.map((tokens) => {
      const cache = decoder.openCache();
      return decoder.forward([{ cache, tokens, logits: "all" }])[0]!;
    });
    // Beyond one block of latents, whose tables grow; in steps of one, two and three tokens.
    const caches = texts.map(() => decoder.openCache());
    for (let at = 0; at < NUM_TOKENS; ) {
      const count = Math.min(1 + (Math.floor(at / 20) % 3), NUM_TOKENS - at);
      const feeds = texts.map((tokens, index) => ({
        cache: caches[index]!,
        tokens: tokens.subarray(at, at + count),
        logits: "all" as const,
      }));
      const logits = decoder.forward(feeds);
      for (const [index, rows] of logits.entries()) {
        const expected = whole[index]!.subarray(at * 300, (at + count) * 300);
        assert.deepEqual(rows, expected, `text ${index}, tokens from ${at} on`);
      }
      at += count;
    }
    checkDrafts(decoder, texts);
  });
}

/** The MTP module over the same rows, run once, recorded and replayed, gives the same logits. */
function checkDrafts(decoder: Decoder, texts: readonly Int32Array[]): void {
  for (const count of [1, 3]) {
    const caches = texts.map(() => decoder.openCache());
    const { hidden } = decoder.forwardKeeping(
      texts.map((tokens, index) => {
        const cache = caches[index]!;
        return { cache, tokens: tokens.subarray(0, count), logits: "none" as const };
      }),
    );
    const feeds = texts.map((tokens, index) => ({
      ...{ cache: caches[index]!, firstRow: index * count, position: 0, logits: index === 1 },
      nextTokens: tokens.subarray(1, 1 + count),
    }));
    const first = decoder.draft(hidden, feeds);
    const kept = Float32Array.from(view(first.hidden));
    assert.deepEqual(
      first.logits.map(({ length }) => length),
      [0, 300],
    );
    for (const way of ["recorded", "replayed"]) {
      const again = decoder.draft(hidden, feeds);
      assert.deepEqual(again.logits, first.logits, `${count} tokens, ${way}`);
      assert.deepEqual(Float32Array.from(view(again.hidden)), kept, `${count} tokens, ${way}`);
    }
    for (const cache of caches) cache.truncate(0);
  }
}
