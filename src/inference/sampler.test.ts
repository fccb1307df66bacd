/**
 * @file Tokens are drawn from exactly the distribution that the options describe, and from the seed
 * alone.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../base/random.ts";
import { likeliestFirst } from "./likeliest-first.ts";
import { GREEDY, Sampler, type SamplingOptions } from "./sampler.ts";

const PLAIN: SamplingOptions = { temperature: 1, topK: 0, topP: 1, minP: 0 };

function logitsOf(probabilities: readonly number[]): Float32Array {
  return Float32Array.from(probabilities, (p) => Math.log(p));
}

/**
 * Probabilities by the definition of each option, one filter after another, renormalised between
 * them.
 */
function expectedProbabilities(logits: Float32Array, options: SamplingOptions): number[] {
  const { temperature, topK, topP, minP } = options;
  const normalise = (weights: readonly number[]): number[] => {
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return weights.map((weight) => weight / sum);
  };
  let p = normalise(Array.from(logits, (logit) => Math.exp(logit / temperature)));
  const order = [...p.keys()].sort((a, b) => p[b]! - p[a]! || a - b);
  if (topK > 0) p = normalise(p.map((x, token) => (order.indexOf(token) < topK ? x : 0)));
  if (topP < 1) {
    const before = (token: number): number =>
      order.slice(0, order.indexOf(token)).reduce((sum, other) => sum + p[other]!, 0);
    p = normalise(p.map((x, token) => (before(token) < topP ? x : 0)));
  }
  const largest = Math.max(...p);
  return normalise(p.map((x) => (x >= minP * largest ? x : 0)));
}

/** Pearson's statistic of draws against probabilities; impossible tokens must not be drawn. */
function chiSquare(counts: readonly number[], probabilities: readonly number[]): number {
  const draws = counts.reduce((sum, count) => sum + count, 0);
  return counts.reduce((sum, count, token) => {
    const expected = draws * probabilities[token]!;
    if (expected === 0) assert.equal(count, 0, `token ${token} is impossible`);
    return expected === 0 ? sum : sum + (count - expected) ** 2 / expected;
  }, 0);
}

describe("sampler", () => {
  const logits = logitsOf([0.02, 0.3, 0.05, 0.2, 0.03, 0.25, 0.1, 0.05]);
  const options: Readonly<Record<string, SamplingOptions>> = {
    plain: PLAIN,
    hot: { ...PLAIN, temperature: 2.5 },
    cold: { ...PLAIN, temperature: 0.4 },
    "top-k": { ...PLAIN, topK: 3 },
    "top-k beyond the vocabulary": { ...PLAIN, topK: 50 },
    "top-p": { ...PLAIN, topP: 0.7 },
    "min-p": { ...PLAIN, minP: 0.3 },
    "all at once": { temperature: 1.3, topK: 6, topP: 0.8, minP: 0.2 },
  };
  for (const [name, option] of Object.entries(options)) {
    it(`draws from the exact distribution: ${name}`, () => {
      const seed = 77;
      const sampler = new Sampler(option, seed);
      const counts = new Array<number>(logits.length).fill(0);
      for (let draw = 0; draw < 20_000; draw++) counts[sampler.sample(logits)]!++;
      // 7 degrees of freedom at most: 24.3 is exceeded once in a thousand seeds.
      const statistic = chiSquare(counts, expectedProbabilities(logits, option));
      assert.ok(statistic < 24.3, `seed ${seed}: ${statistic}, counts ${counts.join(" ")}`);
    });
  }

  it("takes the likeliest token at temperature 0, the lowest id of equal ones", () => {
    const sampler = new Sampler(GREEDY, 1);
    assert.equal(sampler.sample(Float32Array.of(1, 3, 2, 3)), 1);
    assert.equal(sampler.sample(Float32Array.of(-Infinity, -5)), 1);
    const one = new Sampler({ ...PLAIN, topK: 1 }, 1);
    assert.equal(one.sample(Float32Array.of(1, 3, 2, 3)), 1);
  });

  it("repeats itself with the seed and differs with another", () => {
    const draw = (seed: number): string => {
      const sampler = new Sampler(PLAIN, seed);
      return Array.from({ length: 50 }, () => sampler.sample(logits)).join("");
    };
    assert.equal(draw(5), draw(5));
    assert.notEqual(draw(5), draw(6));
  });

  it("survives extreme logits and never draws what is masked", () => {
    const extreme = Float32Array.of(-3e38, 3e38, -Infinity, 2.9e38);
    const sampler = new Sampler({ ...PLAIN, topP: 0.999 }, 3);
    for (let draw = 0; draw < 100; draw++) assert.equal(sampler.sample(extreme), 1);
    const masked = Float32Array.of(-Infinity, 0, -Infinity, 0);
    const plain = new Sampler(PLAIN, 3);
    for (let draw = 0; draw < 100; draw++) assert.equal(plain.sample(masked) % 2, 1);
  });

  it("refuses logits that are no distribution, naming the token", () => {
    const sampler = new Sampler(PLAIN, 1);
    const broken = { code: "inference.logits", message: /token 2 is NaN/ };
    assert.throws(() => sampler.sample(Float32Array.of(0, 1, Number.NaN)), broken);
    assert.throws(() => sampler.sample(Float32Array.of(0, Infinity)), /token 1 is Infinity/);
    assert.throws(() => sampler.sample(Float32Array.of(-Infinity)), /every token is -Infinity/);
  });

  it("looks ahead without taking a number, also where it finds nothing to choose", () => {
    const [looking, plain] = [new Sampler(PLAIN, 8), new Sampler(PLAIN, 8)];
    for (let draw = 0; draw < 50; draw++) {
      const ahead = [0, 1, 2].map((numBefore) => looking.preview(logits, numBefore));
      assert.throws(() => looking.preview(Float32Array.of(0, Number.NaN), 2), /token 1 is NaN/);
      assert.equal(ahead[0], looking.sample(logits));
      assert.equal(looking.preview(logits, 0), ahead[1]);
      plain.sample(logits);
    }
    assert.equal(looking.sample(logits), plain.sample(logits));
  });

  it("refuses options outside their ranges", () => {
    const bad: readonly Partial<SamplingOptions>[] = [
      { temperature: -1 },
      { temperature: Number.NaN },
      { topK: 1.5 },
      { topP: 0 },
      { topP: 1.1 },
      { minP: -0.1 },
    ];
    for (const option of bad) {
      const make = (): Sampler => new Sampler({ ...PLAIN, ...option }, 1);
      assert.throws(make, { code: "inference.sampling" }, JSON.stringify(option));
    }
    assert.throws(() => new Sampler(PLAIN, -1), { code: "inference.sampling" });
  });
});

describe("likeliestFirst", () => {
  it("orders as a sort does, ties by index", () => {
    const random = new Random(4);
    for (const length of [1, 2, 3, 10, 257]) {
      const weights = Float64Array.from({ length }, () => random.below(20));
      const sorted = [...weights.keys()].sort((a, b) => weights[b]! - weights[a]! || a - b);
      assert.deepEqual([...likeliestFirst(weights, length)], sorted);
      assert.deepEqual([...likeliestFirst(weights, 2)], sorted.slice(0, 2));
    }
  });
});
