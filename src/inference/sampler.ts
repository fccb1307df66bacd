/**
 * @file Choosing the next token from logits.
 *
 *     temperature → top-k → top-p → min-p → one draw
 *
 * Each filter sees the distribution that the one before it left, renormalised; this is the order of
 * Hugging Face transformers (llama.cpp has the temperature last, vLLM min-p before top-k). top-k
 * keeps the k most likely tokens, top-p the fewest most likely ones that together reach p, min-p
 * those at least as likely as minP times the likeliest; the likeliest is always kept. Equal logits
 * go to the lower id. Temperature 0 takes the likeliest token and draws nothing.
 *
 * A token takes exactly one number from the request's own stream of random numbers, so a seed gives
 * the same tokens whatever else is being generated. Loops over the vocabulary are plain ones: they
 * run for every token of every stream.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import { Random } from "../base/random.ts";
import { likeliestFirst } from "./likeliest-first.ts";

export interface SamplingOptions {
  /** 0: greedy. */
  readonly temperature: number;
  /** 0: all tokens. */
  readonly topK: number;
  /** 1: all tokens. */
  readonly topP: number;
  /** 0: all tokens. */
  readonly minP: number;
}

export const GREEDY: SamplingOptions = { temperature: 0, topK: 0, topP: 1, minP: 0 };

const TEMPERATURE_MAX = 100;

/** Refuse options outside their ranges. Returns them unchanged. */
export function validateSampling(options: SamplingOptions): SamplingOptions {
  const { temperature, topK, topP, minP } = options;
  const isWithin = (value: number, least: number, most: number): boolean =>
    value >= least && value <= most;
  refuseUnless(
    isWithin(temperature, 0, TEMPERATURE_MAX),
    `temperature (${temperature}) must be a number from 0 (greedy) to ${TEMPERATURE_MAX}`,
  );
  refuseUnless(
    isIntegerIn(topK, 0, 2 ** 31 - 1),
    `top-k (${topK}) must be a whole number, 0 for all tokens`,
  );
  refuseUnless(
    topP > 0 && topP <= 1,
    `top-p (${topP}) must be above 0 and at most 1, 1 for all tokens`,
  );
  refuseUnless(isWithin(minP, 0, 1), `min-p (${minP}) must be from 0 (all tokens) to 1`);
  return options;
}

function refuseUnless(allowed: boolean, message: string): void {
  if (!allowed) throw new OperationalError("inference.sampling", message);
}

/** The choices of one request. */
export class Sampler {
  readonly options: SamplingOptions;
  readonly #random: Random;

  constructor(options: SamplingOptions, seed: number) {
    this.options = validateSampling(options);
    if (!isIntegerIn(seed, 0, Number.MAX_SAFE_INTEGER)) {
      throw new OperationalError(
        "inference.sampling",
        `seed (${seed}) must be a whole number >= 0`,
      );
    }
    this.#random = new Random(seed, "sampler");
  }

  /**
   * What `sample` would choose after `numBefore` other choices, without taking a number: a guess at
   * a token to come.
   */
  preview(logits: Float32Array, numBefore: number): number {
    const { state } = this.#random;
    try {
      // Every choice takes one number, unless it has none to make.
      if (this.options.temperature !== 0) {
        for (let index = 0; index < numBefore; index++) this.#random.uniform();
      }
      return this.sample(logits);
    } finally {
      this.#random.state = state;
    }
  }

  /** The next token; refuses logits that no distribution has. */
  sample(logits: Float32Array): number {
    const likeliest = findLikeliest(logits);
    const { temperature } = this.options;
    if (temperature === 0) return likeliest;
    const weights = weightsOf(logits, logits[likeliest]!, temperature);
    return drawToken(weights, this.options, this.#random.uniform());
  }
}

/**
 * The index of the largest logit, the lowest of equal ones; refuses logits that no distribution
 * has.
 */
function findLikeliest(logits: Float32Array): number {
  assert(logits.length > 0, "a token is chosen among at least one");
  let [likeliest, largest] = [0, -Infinity];
  for (let token = 0; token < logits.length; token++) {
    const logit = logits[token]!;
    if (Number.isNaN(logit) || logit === Infinity) refuseLogit(logit, token);
    if (logit > largest) [likeliest, largest] = [token, logit];
  }
  if (largest === -Infinity) refuseLogit(-Infinity, "every token");
  return likeliest;
}

function refuseLogit(logit: number, token: number | string): never {
  throw new OperationalError(
    "inference.logits",
    `the logit of ${typeof token === "number" ? `token ${token}` : token} is ${logit}; ` +
      "no token can be chosen: the checkpoint's numbers or the prompt broke the model",
    { logit, token },
  );
}

/** The token at a share `at`, from 0 to below 1, of what the filters leave of `weights`. */
function drawToken(weights: Float64Array, options: SamplingOptions, at: number): number {
  const isFiltered = options.topK > 0 || options.topP < 1 || options.minP > 0;
  // Without filters nothing need be sorted: ids are an order as good as any.
  const tokens = isFiltered ? keepTokens(weights, options) : null;
  const count = tokens?.length ?? weights.length;
  const tokenAt = (place: number): number => tokens?.[place] ?? place;
  let mass = 0;
  for (let place = 0; place < count; place++) mass += weights[tokenAt(place)]!;
  let left = at * mass;
  let drawn = tokenAt(0);
  for (let place = 0; place < count && left >= 0; place++) {
    const token = tokenAt(place);
    // Rounding may leave a remainder after the last token: the last possible one then stands.
    if (weights[token] === 0) continue;
    drawn = token;
    left -= weights[token]!;
  }
  return drawn;
}

/** Probabilities up to a common factor; the likeliest has 1. */
function weightsOf(logits: Float32Array, largest: number, temperature: number): Float64Array {
  const weights = new Float64Array(logits.length);
  for (let token = 0; token < logits.length; token++) {
    weights[token] = Math.exp((logits[token]! - largest) / temperature);
  }
  return weights;
}

/**
 * The tokens that the filters keep, likeliest first. All three cut the same order, so the shortest
 * cut holds.
 */
function keepTokens(
  weights: Float64Array,
  { topK, topP, minP }: Omit<SamplingOptions, "temperature">,
): number[] {
  const isCut = topK > 0 && topK < weights.length;
  const ordered = likeliestFirst(weights, isCut ? topK : weights.length);
  let mass = 0;
  if (!isCut) for (const weight of weights) mass += weight;
  // How many top-k keeps is known; what they weigh is not before they are all found.
  const candidates = isCut ? [...ordered] : ordered;
  if (isCut) for (const token of candidates) mass += weights[token]!;
  const kept: number[] = [];
  let reached = 0;
  for (const token of candidates) {
    const weight = weights[token]!;
    if (kept.length > 0 && (weight < minP || weight === 0)) break;
    kept.push(token);
    reached += weight;
    if (topP < 1 && reached >= topP * mass) break;
  }
  return kept;
}
