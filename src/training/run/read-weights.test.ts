/** @file A model that only infers keeps its weights once, and computes what they say. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { defined } from "../../base/errors.ts";
import { openSafetensors } from "../../checkpoint/safetensors.ts";
import { Decoder } from "../../inference/decoder.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { type ModelConfig, moeLayerIndices } from "../../model/config.ts";
import { Model } from "../../model/model.ts";
import { ParameterSet } from "../../model/parameters.ts";
import { storedBytes } from "../../model/stored-parameters.ts";
import { randomBatch, TINY } from "../../model/test-support.ts";
import { parseWeightFormat } from "../../model/weight-format.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { trainBpe } from "../../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { inferenceOptions, loadCheckpoint, writeModel } from "./checkpoint.ts";
import { readWeights } from "./read-weights.ts";

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

const FORMATS = ["fp8", "int8", "int4:g64", "int4:a"];

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
      assert.equal(storedBytes(config, "bf16"), matrices + 2 * gains);
      // Beside them the arena holds routing biases, RoPE tables, and padding to cache lines.
      const held = model.arenas.model.liveBytes;
      assert.ok(held < 1.1 * storedBytes(config, "bf16") + 8192, `${held} bytes for ${matrices}`);
      assert.throws(() => model.parameters.get("norm").gradient, /made to infer/);
      assert.throws(() => model.parameters.get("embedding").value, /made to infer/);
    });
  }

  for (const notation of FORMATS) {
    it(`keeps the same codes, quantised on load or read from the disk: ${notation}`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const [plain, coded] = [join(folder, `${notation} plain`), join(folder, `${notation} coded`)];
      const weights = parseWeightFormat(notation);
      assert.ok(weights !== "f32");
      const trained = new Model(device, CONFIG, { precision: "bf16", seed: 7 });
      writeModel(plain, { model: trained, tokenizer, dtype: "bf16" });
      // What is quantised on load is what stands there in bf16.
      const { model: rounded } = loadCheckpoint(device, plain, { precision: "f32" });
      writeModel(coded, { model: rounded, tokenizer, dtype: weights });
      assert.deepEqual(inferenceOptions(coded, undefined), { weights });
      const { model: quantised } = loadCheckpoint(device, plain, { weights });
      const { model: read } = loadCheckpoint(device, coded, inferenceOptions(coded, undefined));
      for (const [index, { name, stored }] of quantised.parameters.list.entries()) {
        const others = read.parameters.list[index]!.stored;
        for (const [part, tensor] of stored.entries()) {
          if (name.endsWith("keyValueUp")) continue;
          assert.deepEqual(view(tensor), view(others[part]!), `${name}, part ${part}`);
        }
      }
      const held = read.arenas.model.liveBytes;
      const predicted = storedBytes(CONFIG, weights);
      assert.ok(held < 1.1 * predicted + 12_000, `${held} bytes, ${predicted} predicted`);
      assert.throws(() => read.parameters.get("head").value, /made to infer/);
    });

    it(`computes what the codes stand for: ${notation}`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const path = join(folder, `${notation} computed`);
      const weights = parseWeightFormat(notation);
      assert.ok(weights !== "f32");
      const trained = new Model(device, CONFIG, { precision: "bf16", seed: 8 });
      writeModel(path, { model: trained, tokenizer, dtype: weights });
      // The same values as master values: what differs is that their products read them rounded.
      const models = [{ precision: "bf16" } as const, { weights }].map(
        (options) => loadCheckpoint(device, path, options).model,
      );
      const [expected, losses] = models.map((model) => model.evaluate(BATCH));
      assertNear(losses!, expected!, 0.01);
      const tokens = BATCH.tokens.subarray(0, 21);
      const [exact, logits] = models.map((model) => {
        const decoder = new Decoder(device, model);
        return decoder.forward([{ cache: decoder.openCache(), tokens, logits: "all" }])[0]!;
      });
      assertNear(logits!, exact!, 0.01);
    });
  }

  for (const notation of ["f32", "bf16", ...FORMATS]) {
    it(`holds some of the experts, one of them twice: ${notation}`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const path = join(folder, `${notation} held`);
      const trained = new Model(device, CONFIG, { precision: "bf16", seed: 9 });
      writeModel(path, { model: trained, tokenizer, dtype: "bf16" });
      const how = inferenceOptions(path, notation);
      const { model: whole } = loadCheckpoint(device, path, how);
      const held = [5, 0, 5];
      const names = whole.parameters.list.filter(({ role }) => role === "experts");
      const parameters = new ParameterSet(device, new Arena(device.memory, "held"), CONFIG, {
        ...{ recipe: whole.recipe, gradients: false, weights: how.weights, heldExperts: held },
        part: { names: new Set(names.map(({ name }) => name)), copies: new Set() },
      });
      const weights = how.weights ?? null;
      readWeights(path, { config: CONFIG, weights, parameters, gateBiases: [] }, "bf16");
      assert.equal(parameters.list.length, 2 * moeLayerIndices(CONFIG).length);
      for (const { name, stored } of parameters.list) {
        for (const [part, tensor] of stored.entries()) {
          const all = view(whole.parameters.get(name).stored[part]!);
          const each = all.length / CONFIG.numRoutedExperts;
          for (const [place, expert] of held.entries()) {
            const mine = view(tensor).subarray(place * each, (place + 1) * each);
            const expected = all.subarray(expert * each, (expert + 1) * each);
            assert.deepEqual(mine, expected, `${name}, part ${part}, expert ${expert}`);
          }
        }
      }
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
    assertNear(logits!, expected!, 0.01);
  });
});

/** Codes that are not finite, in tensors of each form that weights are stored in. */
const NOT_FINITE = [
  ["f32", "mlp.gate.e_score_correction_bias", [0, 0, 0x80, 0xff], "-Infinity"],
  ["f32", "self_attn.o_proj.weight", [0, 0, 0x80, 0x7f], "Infinity"],
  ["bf16", "self_attn.o_proj.weight", [0xc0, 0x7f], "NaN"],
  ["fp8", "self_attn.o_proj.weight", [0x7f], "NaN"],
  ["fp8", "self_attn.o_proj.weight_scale_inv", [0, 0, 0x80, 0x7f], "Infinity", 0],
  ["int8", "self_attn.o_proj.weight_scale", [0x80, 0x7f], "Infinity"],
] as const;

describe("weights that are not finite", () => {
  for (const [index, [notation, tensor, code, value, at = 2]] of NOT_FINITE.entries()) {
    it(`are refused with tensor and file: ${notation}, ${tensor}`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const path = join(folder, `not finite ${index}`);
      const model = new Model(device, CONFIG, { precision: "f32", seed: 5 });
      writeModel(path, { model, tokenizer, dtype: parseWeightFormat(notation) });
      const file = join(path, "model.safetensors");
      const name = `model.layers.1.${tensor}`;
      overwrite(file, name, at * code.length, code);
      assert.throws(() => loadCheckpoint(device, path, inferenceOptions(path, undefined)), {
        code: "checkpoint.nonfinite",
        message: new RegExp(
          `^${file}: ${name} holds ${value} at element ${at}, and weights must be`,
        ),
      });
    });
  }
});

/** Put other bytes into a tensor of a file, `at` bytes from its beginning. */
function overwrite(file: string, name: string, at: number, bytes: readonly number[]): void {
  using tensors = openSafetensors(file);
  const stored = defined(tensors.tensors.get(name), name);
  const content = readFileSync(file);
  content.set(bytes, stored.begin + at);
  writeFileSync(file, content);
}

/**
 * Elements are off by no more than this share of the largest, in the mean: a rounded gate may
 * choose another expert for a token or two.
 */
function assertNear(actual: Float32Array, expected: Float32Array, share: number): void {
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const error =
    expected.reduce((sum, value, index) => sum + Math.abs(value - actual[index]!), 0) /
    expected.length;
  assert.ok(error < share * largest, `values up to ${largest} differ by ${error} in the mean`);
}
