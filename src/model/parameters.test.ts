/** @file The parameter spans, their copies for products, and the queue of weight gradients. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { InvariantError, OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { fromBf16, toBf16 } from "../numerics/bf16.ts";
import { Arena } from "../tensor/arena.ts";
import { elementCount } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { validateConfig } from "./config.ts";
import { countParameters } from "./counts.ts";
import { Model } from "./model.ts";
import { SPAN_NAMES } from "./parameter-layout.ts";
import { fillNormal, openReferenceDevice, randomBatch, TINY } from "./test-support.ts";
import { WeightGradQueue } from "./weight-grad-queue.ts";

const CONFIG = { ...TINY, numMtpModules: 1 };

test("the flat spans hold every parameter once, and zeros between them", async () => {
  await using device = await openReferenceDevice();
  const { parameters } = new Model(device, CONFIG, { precision: "f32", seed: 1 });
  const spans = SPAN_NAMES.map((name) => view(parameters[name].values));
  for (const { value } of parameters.list) view(value).fill(1);
  const ones = spans.map((span) => Array.from(span).reduce((sum, x) => sum + x, 0));
  const counts = countParameters(CONFIG);
  assert.equal(ones[0]! + ones[1]! + ones[2]!, counts.total);
  assert.equal(parameters.numParameters, counts.total);
  assert.ok(parameters.list.every(({ role, decays }) => decays === (role !== "norm")));
  const gains = parameters.list.filter(({ decays }) => !decays);
  assert.equal(
    ones[1],
    gains.reduce((sum, { value }) => sum + elementCount(value), 0),
  );
  const experts = parameters.list.filter(({ role }) => role === "experts");
  assert.equal(
    ones[2],
    experts.reduce((sum, { value }) => sum + elementCount(value), 0),
  );
});

test("initial values depend on the seed and the name alone, gains are 1", async () => {
  await using device = await openReferenceDevice();
  const values = (config: typeof CONFIG, seed: number, name: string): number[] => [
    ...view(new Model(device, config, { precision: "f32", seed }).parameters.get(name).value),
  ];
  const name = "layers.1.moe.gate";
  const first = values(CONFIG, 1, name);
  assert.deepEqual(values({ ...CONFIG, numLayers: 3, qLoraRank: 7 }, 1, name), first);
  assert.notDeepEqual(values(CONFIG, 2, name), first);
  assert.notDeepEqual(
    values(CONFIG, 1, "layers.1.attention.queryDown").slice(0, 9),
    first.slice(0, 9),
  );
  const wide = values({ ...CONFIG, vocabSize: 2000 }, 1, "embedding");
  const deviation = Math.sqrt(wide.reduce((sum, x) => sum + x * x, 0) / wide.length);
  assert.ok(Math.abs(deviation / CONFIG.initializerRange - 1) < 0.03, `deviation ${deviation}`);
  assert.ok(values(CONFIG, 1, "norm").every((gain) => gain === 1));
});

for (const tieWordEmbeddings of [false, true]) {
  const which = tieWordEmbeddings ? "tied embeddings" : "a head of its own";
  test(`products read rounded copies in a model with ${which}`, async () => {
    await using device = await openReferenceDevice();
    const config = { ...CONFIG, tieWordEmbeddings };
    const { parameters } = new Model(device, config, { precision: "bf16", seed: 1 });
    const changed = view(parameters.get("layers.0.attention.output").value);
    changed[3] = 1.001;
    parameters.refreshCompute();
    for (const { name, role, value, compute } of parameters.list) {
      const looksUp = role === "norm" || (role === "embedding" && !tieWordEmbeddings);
      assert.equal(compute.dtype, looksUp ? "f32" : "bf16", name);
      const codes = Float32Array.from(view(compute), looksUp ? (x) => x : fromBf16);
      const expected = Float32Array.from(
        view(value),
        looksUp ? (x) => x : (x) => fromBf16(toBf16(x)),
      );
      assert.deepEqual(codes, expected, name);
    }
  });
}

test("a model without gradients evaluates, and says what it lacks when trained", async () => {
  await using device = await openReferenceDevice();
  const model = new Model(device, TINY, { precision: "f32", seed: 1, gradients: false });
  const batch = randomBatch(TINY, { numSequences: 1, seqLength: 3, seed: 1 });
  assert.equal(model.evaluate(batch).length, 3);
  const options = { mtpWeight: 0, balanceWeight: 0, zLoss: 0, computeGradients: true };
  assert.throws(() => model.forwardBackward(batch, options), /memory for gradients/);
});

test("deferred weight gradients run later with the same bits", async () => {
  await using device = await openReferenceDevice();
  const random = new Random(1, "queue");
  const arena = new Arena(device.memory, "test");
  const [atOnce, later] = [arena.allocateZeros("f64", [2, 3]), arena.allocateZeros("f64", [2, 3])];
  const queue = new WeightGradQueue(device, new Arena(device.memory, "weight gradients"));
  const make = (columns: number): ReturnType<typeof queue.arena.allocate<"f64">> => {
    const tensor = queue.arena.allocate("f64", [5, columns]);
    fillNormal(tensor, random);
    return tensor;
  };
  const [a, b] = [make(2), make(3)];
  queue.deferred = true;
  queue.push({ a, b, gradient: later });
  queue.settle();
  assert.equal(queue.numPending, 1);
  assert.ok(view(later).every((value) => value === 0));
  assert.throws(() => queue.assertEmpty(), InvariantError);
  queue.push({ a, b, gradient: atOnce });
  queue.run();
  queue.assertEmpty();
  assert.equal(queue.arena.liveBytes, 0);
  assert.deepEqual([...view(later)], [...view(atOnce)]);
  assert.ok(view(later).some((value) => value !== 0));
});

test("a configuration that no layer could compute is refused with its field's name", () => {
  const refused = [
    [{ hiddenDim: 0 }, /hiddenDim \(0\)/],
    [{ numHeads: 1.5 }, /numHeads \(1.5\)/],
    [{ qLoraRank: -1 }, /qLoraRank/],
    [{ qkRopeHeadDim: 3 }, /must be even/],
    [{ numExpertsPerToken: 9 }, /numExpertsPerToken \(9\)/],
    [{ rmsNormEps: Number.NaN }, /rmsNormEps/],
    [{ eosTokenId: 13 }, /eosTokenId \(13\)/],
  ] as const;
  for (const [change, message] of refused) {
    assert.throws(
      () => validateConfig({ ...TINY, ...change }),
      (error: unknown) => error instanceof OperationalError && message.test(error.message),
    );
  }
});
