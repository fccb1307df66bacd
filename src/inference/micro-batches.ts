/**
 * @file A pass cut into two micro-batches of similar work, whose layers alternate where ranks share
 * the experts: while tokens of one are with other ranks, the other's attention computes here.
 *
 *     attention A,  attention B ‖ dispatch A,  experts A ‖ dispatch B,  experts B ‖ combine A, …
 *
 * Rows keep their order, so the cut may go through a sequence: its first part is always a step
 * ahead, and has written a layer's latents before the second part reads them. A token's work grows
 * with its position. Source: DeepSeek-V3 report §3.4.1.
 */
import { assert } from "../base/errors.ts";
import type { ModelConfig } from "../model/config.ts";
import { countParameters } from "../model/counts.ts";
import type { PassCall } from "./latent-pass.ts";

/** Tokens of a pass, or of a part of it. */
export type PassTokens = Pick<PassCall, "sequences" | "tokens">;

/** Multiplications that a token at a position takes. */
export type TokenWork = (position: number) => number;

/** Of one model: a token's own products, and those with the latents before it. */
export function tokenWorkOf(config: ModelConfig): TokenWork {
  const { active, embedding, head } = countParameters(config);
  const { numLayers, numHeads, kvLoraRank, qkRopeHeadDim } = config;
  const own = active - embedding - head;
  const perPosition = numLayers * numHeads * (2 * kvLoraRank + qkRopeHeadDim);
  return (position) => own + perPosition * (position + 1);
}

/** Two parts, neither of them empty, with rows of their own from 0 on. */
export function cutInTwo(pass: PassTokens, workOf: TokenWork): readonly [PassTokens, PassTokens] {
  const numTokens = pass.tokens.length;
  assert(numTokens >= 2, `${numTokens} tokens do not make two micro-batches`);
  const work = worksOf(pass.sequences, workOf);
  const half = countWork(pass.sequences, workOf) / 2;
  let cut = 0;
  // The token in the middle goes where most of it lies.
  for (let done = 0; cut < numTokens && done + work[cut]! / 2 <= half; cut++) done += work[cut]!;
  cut = Math.max(1, Math.min(cut, numTokens - 1));
  return [rowsOf(pass, 0, cut), rowsOf(pass, cut, numTokens)];
}

/** Of all tokens together. */
export function countWork(sequences: PassTokens["sequences"], workOf: TokenWork): number {
  return worksOf(sequences, workOf).reduce((sum, each) => sum + each, 0);
}

function worksOf(sequences: PassTokens["sequences"], workOf: TokenWork): number[] {
  return sequences.flatMap(({ count, position }) =>
    Array.from({ length: count }, (_, index) => workOf(position + index)),
  );
}

function rowsOf({ sequences, tokens }: PassTokens, start: number, end: number): PassTokens {
  const parts = sequences.flatMap(({ cache, firstToken, count, position }) => {
    const first = Math.max(firstToken, start);
    const rows = Math.min(firstToken + count, end) - first;
    const from = position + first - firstToken;
    return rows <= 0 ? [] : [{ cache, firstToken: first - start, count: rows, position: from }];
  });
  return { sequences: parts, tokens: tokens.subarray(start, end) };
}
