/** @file What is told of a token's probability: its own and the likeliest ones, under the model. */
import { likeliestFirst } from "../likeliest-first.ts";
import type { TokenLogProbability } from "./api.ts";

/** Of `token` under `logits`, with the `numTop` likeliest. */
export function describeToken(
  logits: Float32Array,
  token: number,
  numTop: number,
): TokenLogProbability {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), Number.NEGATIVE_INFINITY);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  const logSum = largest + Math.log(sum);
  const of = (id: number): number => logits[id]! - logSum;
  const top: { token: number; logProbability: number }[] = [];
  if (numTop > 0) {
    for (const id of likeliestFirst(Float64Array.from(logits), numTop)) {
      top.push({ token: id, logProbability: of(id) });
    }
  }
  return { token, logProbability: of(token), top };
}
