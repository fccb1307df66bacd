/**
 * @file Absorbed decoding agrees with the training forward, and its bits do not depend on how
 * tokens are fed.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import type { ModelConfig } from "../model/config.ts";
import { Model } from "../model/model.ts";
import type { Precision } from "../model/model-types.ts";
import { SPAN_NAMES } from "../model/parameter-layout.ts";
import { randomBatch, TINY } from "../model/test-support.ts";
import { decodeBf16, encodeBf16 } from "../numerics/bf16.ts";
import { mismatch, toleranceFor } from "../numerics/tolerance.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { Decoder } from "./decoder.ts";
import type { LatentCache } from "./latent-cache.ts";
import { Session } from "./session.ts";

const SMALL: ModelConfig = { ...TINY, vocabSize: 61, hiddenDim: 24, maxPositionEmbeddings: 700 };
const YARN = {
  type: "yarn",
  factor: 4,
  betaFast: 32,
  betaSlow: 1,
  mscale: 1,
  mscaleAllDim: 0.7,
  originalMaxPositionEmbeddings: 16,
} as const;
const VARIANTS: Readonly<Record<string, ModelConfig>> = {
  "compressed query": SMALL,
  "direct query, YaRN, two MTP modules": {
    ...SMALL,
    qLoraRank: null,
    ropeScaling: YARN,
    numMtpModules: 2,
  },
  "V2-Lite gate, two shared experts": {
    ...SMALL,
    qLoraRank: null,
    scoring: "softmax",
    topkMethod: "greedy",
    normTopkProb: false,
    routedScalingFactor: 1,
    numSharedExperts: 2,
  },
  "groups of experts, one head": {
    ...SMALL,
    numHeads: 1,
    numExpertGroups: 4,
    numChosenGroups: 2,
  },
  "dense and tied": { ...SMALL, numRoutedExperts: 0, tieWordEmbeddings: true },
};

/** As after loading a BF16 checkpoint: the master values are those that products read. */
function roundValues({ parameters }: Model): void {
  for (const name of SPAN_NAMES) {
    const { values } = parameters[name];
    const codes = new Uint16Array(values.columns);
    const all = view(values as Tensor<"f32">);
    encodeBf16(Float32Array.from(all), codes);
    const rounded = new Float32Array(codes.length);
    decodeBf16(codes, rounded);
    all.set(rounded);
  }
  parameters.refreshCompute();
}

function randomTokens(count: number, seed: number): Int32Array {
  const random = new Random(seed, "tokens");
  return Int32Array.from({ length: count }, () => random.below(SMALL.vocabSize));
}

/** Logits of every token, fed `chunk` at a time. */
function logitsInChunks(decoder: Decoder, cache: LatentCache, tokens: Int32Array, chunk: number) {
  const all: number[] = [];
  for (let start = 0; start < tokens.length; start += chunk) {
    const feed = { cache, tokens: tokens.subarray(start, start + chunk), logits: "all" } as const;
    all.push(...decoder.forward([feed])[0]!);
  }
  return Float32Array.from(all);
}

/** −ln p of `targets` under rows of logits. */
function losses(logits: Float32Array, targets: Int32Array, vocabSize: number): Float32Array {
  return Float32Array.from(targets, (target, row) => {
    const of = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
    const largest = Math.max(...of);
    return Math.log(of.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest - of[target]!;
  });
}

/** Losses of one random sequence by decoding it and by the training forward. */
function bothLosses(device: Device, model: Model, seed: number): [Float32Array, Float32Array] {
  const { config } = model;
  const batch = randomBatch(config, { numSequences: 1, seqLength: 33, seed });
  const decoder = new Decoder(device, model, 128);
  const tokens = batch.tokens.subarray(0, 33);
  const logits = logitsInChunks(decoder, decoder.openCache(), tokens, 33);
  return [losses(logits, batch.tokens.subarray(1, 34), config.vocabSize), model.evaluate(batch)];
}

for (const kernels of ["reference", "auto", "wasm"] as const) {
  describe(`decoder on ${kernels} kernels`, () => {
    let device: Device;
    before(async () => {
      device = await openCpuDevice({ kernels, numThreads: 2 });
    });
    after(() => device[Symbol.asyncDispose]());

    const makeModel = (config: ModelConfig, precision: Precision): Model =>
      new Model(device, config, { precision, seed: 5, attention: "exact" });

    for (const [name, config] of Object.entries(VARIANTS)) {
      for (const precision of ["f32", "bf16"] as const) {
        it(`gives the losses of the training forward: ${name}, ${precision}`, () => {
          const model = makeModel(config, precision);
          roundValues(model);
          const decoder = new Decoder(device, model);
          const batch = randomBatch(config, { numSequences: 2, seqLength: 33, seed: 8 });
          const width = batch.tokens.length / 2;
          const trained = model.evaluate(batch);
          for (let sequence = 0; sequence < 2; sequence++) {
            const tokens = batch.tokens.subarray(sequence * width, sequence * width + 34);
            const cache = decoder.openCache();
            const logits = logitsInChunks(decoder, cache, tokens.subarray(0, 33), 7);
            const decoded = losses(logits, tokens.subarray(1), config.vocabSize);
            const expected = trained.subarray(sequence * 33, (sequence + 1) * 33);
            assert.equal(
              mismatch(decoded, expected, toleranceFor("decoding", precision, config.numLayers)),
              undefined,
            );
          }
        });
      }
    }

    it("stays near a training forward whose attention multiplies in bf16", () => {
      for (const name of ["dense and tied", "compressed query"]) {
        const config = VARIANTS[name]!;
        const model = new Model(device, config, { precision: "bf16", seed: 5, attention: "bf16" });
        roundValues(model);
        const allowed = toleranceFor("decoding", "bf16", config.numLayers);
        const pairs = [1, 2, 3, 4].map((seed) => bothLosses(device, model, seed));
        const [decoded, trained] = [0, 1].map((side) =>
          Float32Array.from(pairs.flatMap((pair) => [...pair[side]!])),
        ) as [Float32Array, Float32Array];
        if (config.numRoutedExperts === 0) {
          assert.equal(mismatch(decoded, trained, allowed), undefined);
          continue;
        }
        // Where a rounding flips the choice of an expert, another function is computed.
        const bound = allowed.scaledError * Math.max(...trained);
        const near = decoded.filter((loss, index) => Math.abs(loss - trained[index]!) <= bound);
        assert.ok(near.length >= 0.9 * decoded.length, `${near.length} of ${decoded.length}`);
      }
    });

    it("gives a token the same bits at any chunking, beyond one block of depth", () => {
      const decoder = new Decoder(device, makeModel(VARIANTS["compressed query"]!, "bf16"));
      const tokens = randomTokens(kernels === "reference" ? 150 : 650, 1);
      const cache = decoder.openCache();
      const whole = logitsInChunks(decoder, cache, tokens, tokens.length);
      for (const chunk of [1, 3, 64]) {
        cache.truncate(0);
        const logits = logitsInChunks(decoder, cache, tokens, chunk);
        assert.deepEqual(logits, whole, `chunks of ${chunk}`);
      }
      const kept = tokens.length - 50;
      cache.truncate(kept);
      const again = logitsInChunks(decoder, cache, tokens.subarray(kept), 7);
      assert.deepEqual(again, whole.subarray(kept * SMALL.vocabSize), "after cached tokens");
    });

    it("gives a sequence the same bits in any company", () => {
      const seed = 12;
      for (const precision of ["f32", "bf16"] as const) {
        const decoder = new Decoder(device, makeModel(SMALL, precision));
        const random = new Random(seed, precision);
        const runs = [40, 23, 61].map((length, index) => ({
          tokens: randomTokens(length, 50 + index),
          cache: decoder.openCache(),
          logits: [] as number[],
        }));
        for (;;) {
          const open = runs.filter(({ tokens, cache }) => cache.length < tokens.length);
          if (open.length === 0) break;
          random.shuffle(open);
          const chosen = open.slice(0, 1 + random.below(open.length));
          const feeds = chosen.map(({ cache, tokens }) => {
            const end = cache.length + 1 + random.below(9);
            return { cache, tokens: tokens.subarray(cache.length, end), logits: "all" } as const;
          });
          const results = decoder.forward(feeds);
          chosen.forEach(({ logits }, index) => void logits.push(...results[index]!));
        }
        for (const { tokens, logits, cache } of runs) {
          cache.truncate(0);
          const alone = logitsInChunks(decoder, cache, tokens, tokens.length);
          assert.deepEqual(Float32Array.from(logits), alone, `seed ${seed}, ${precision}`);
        }
      }
    });
  });
}

describe("decoder", () => {
  it("computes the function of the training forward: in f64 they are equal", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    for (const [name, config] of Object.entries(VARIANTS)) {
      const options = { precision: "f32", floatType: "f64", seed: 5 } as const;
      const model = new Model(device, config, options);
      const decoder = new Decoder(device, model);
      const { tokens } = randomBatch(config, { numSequences: 1, seqLength: 20, seed: 9 });
      const trained = model.evaluate({ tokens, numSequences: 1, seqLength: 20 });
      const cache = decoder.openCache();
      const logits = logitsInChunks(decoder, cache, tokens.subarray(0, 20), 3);
      const decoded = losses(logits, tokens.subarray(1, 21), config.vocabSize);
      const allowed = toleranceFor("elementwise", "f32");
      assert.equal(mismatch(decoded, trained, allowed), undefined, name);
    }
  });

  it("gives the same bits on one thread as on two", async () => {
    const tokens = randomTokens(90, 3);
    const results: Float32Array[] = [];
    for (const numThreads of [1, 2]) {
      await using device = await openCpuDevice({ numThreads });
      const decoder = new Decoder(device, new Model(device, SMALL, { precision: "bf16", seed: 5 }));
      results.push(logitsInChunks(decoder, decoder.openCache(), tokens, 90));
    }
    assert.deepEqual(results[0], results[1]);
  });

  it("refuses what does not fit, and leaves the cache as it was", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    const model = new Model(device, SMALL, { precision: "f32", seed: 5 });
    const decoder = new Decoder(device, model, 64);
    const cache = decoder.openCache();
    const feed = (...tokens: number[]): void =>
      void decoder.forward([{ cache, tokens: Int32Array.from(tokens), logits: "none" }]);
    feed(1, 2, 3);
    const tooMany = Array.from({ length: 62 }, () => 1);
    assert.throws(() => feed(...tooMany), { code: "inference.context", message: /3 \+ 62 tokens/ });
    assert.throws(() => feed(61), { code: "inference.token", message: /token 61 .* 61/ });
    assert.equal(cache.length, 3);
    assert.throws(() => new Session(decoder, 701), { code: "inference.context" });
  });

  it("tells ranks that share its experts of no pass that there is no memory for", async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const config = { ...SMALL, numMtpModules: 1 };
    const model = new Model(device, config, { precision: "f32", seed: 5, gradients: false });
    const told: string[] = [];
    const decoder = new Decoder(device, model, 256, {
      choice: { takesTwo: () => false, note: () => {} },
      announce: (pass) => void told.push(pass),
      describe: () => [],
    });
    const cache = decoder.openCache();
    const pass = () =>
      decoder.forwardKeeping([{ cache, tokens: Int32Array.of(3), logits: "last" }]);
    const { hidden } = pass();
    const feed = { cache, firstRow: 0, position: 0, nextTokens: Int32Array.of(4), logits: true };
    const draft = () => decoder.draft(hidden, [feed]);
    draft();
    // The second time both are recorded, in memory of their own.
    device.memory.reserve = () => {
      throw new OperationalError("device.memory", "there is no more");
    };
    assert.throws(pass, { code: "device.memory" });
    assert.throws(draft, { code: "device.memory" });
    assert.deepEqual(told, ["layers", "draft"]);
  });

  it("gives the same bits over shared and copied blocks as over a sequence's own", async () => {
    await using device = await openCpuDevice({ numThreads: 2 });
    const model = new Model(device, SMALL, { precision: "bf16", seed: 5 });
    const decoder = new Decoder(device, model, 6 * 64);
    const tokens = randomTokens(140, 4);
    const first = decoder.openCache();
    logitsInChunks(decoder, first, tokens.subarray(0, 128), 50);
    const second = decoder.openCache();
    for (const block of first.blocks) decoder.blocks.retain(block);
    second.adopt(first.blocks);
    // Position 100 lies in a block that both hold: written by the second, it has to be copied.
    second.truncate(100);
    const shared = logitsInChunks(decoder, second, tokens.subarray(100), 9);
    assert.notEqual(second.blocks[1], first.blocks[1]);
    const rest = logitsInChunks(decoder, first, tokens.subarray(128), 12);
    first.truncate(0);
    const alone = logitsInChunks(decoder, first, tokens, 140);
    assert.deepEqual(shared, alone.subarray(100 * SMALL.vocabSize));
    assert.deepEqual(rest, alone.subarray(128 * SMALL.vocabSize));
    first.truncate(0);
    second.truncate(0);
    decoder.blocks.checkIntegrity();
    assert.equal(decoder.blocks.numFree, 6);
  });

  it("drafts what the MTP module was trained to predict", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    const config = { ...SMALL, numMtpModules: 1 };
    const options = { precision: "f32", floatType: "f64", seed: 5 } as const;
    const model = new Model(device, config, options);
    const decoder = new Decoder(device, model);
    const seqLength = 20;
    const { tokens } = randomBatch(config, { numSequences: 1, seqLength, seed: 9 });
    const step = { mtpWeight: 1, balanceWeight: 0, zLoss: 0, computeGradients: false } as const;
    const trained = model.forwardBackward({ tokens, numSequences: 1, seqLength }, step);
    const cache = decoder.openCache();
    const drafted: number[] = [];
    for (let position = 0; position < seqLength; position++) {
      const feed = { cache, tokens: tokens.slice(position, position + 1), logits: "none" } as const;
      const { hidden } = decoder.forwardKeeping([feed]);
      const nextTokens = tokens.slice(position + 1, position + 2);
      const draft = { cache, firstRow: 0, position, nextTokens, logits: true };
      drafted.push(...decoder.draft(hidden, [draft]).logits[0]!);
    }
    const of = losses(Float32Array.from(drafted), tokens.subarray(2, 22), config.vocabSize);
    const mean = of.reduce((sum, loss) => sum + loss, 0) / seqLength;
    assert.ok(Math.abs(mean - trained.mtpLosses[0]!) < 1e-5, `${mean} ${trained.mtpLosses[0]}`);
  });
});
