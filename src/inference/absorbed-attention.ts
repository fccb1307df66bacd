/**
 * @file Multi-head latent attention over the latent cache, absorbed: keys and values are never
 * expanded.
 *
 *     query_T_HCR  = per head [q_nope · W_UK[h] | turned q_rope]         row_S = [latent | key]
 *     p_TH_S       = softmax(scale · query · rowᵀ)                       rows up to the token's own
 *     mixed_T_HC   = p · row[:, :C],   head h's output = mixed · W_UV[h]ᵀ,   out_TD += heads · W_Oᵀ
 *
 *   T new tokens of all sequences, S rows of one sequence's cache, H heads
 *
 * Projections are rounded as in training; scores, probabilities and both absorbed products are in
 * the float type, from the master values of W_UK and W_UV. A token's result has the same bits
 * whatever else is in the pass: products sum in an order that depends on their depth alone, hidden
 * keys have probability 0 exactly, and zeros appended to a sum do not change it. Source:
 * DeepSeek-V2 report §2.1.2 (absorption).
 */
import { divExact, floorDiv } from "../base/integers.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { matmul } from "../kernels/matmul/contract.ts";
import { softmaxCausal } from "../kernels/softmax/contract.ts";
import type { MlaLayer } from "../model/mla.ts";
import type { ComputeType } from "../model/parameters.ts";
import { copyToCompute, type Pass } from "../model/pass.ts";
import { turn } from "../model/rope.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, sliceColumns, sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { LatentCache } from "./latent-cache.ts";

/**
 * The tokens of one sequence within a pass: `count` rows from `firstRow` on, the next positions of
 * `cache`.
 */
export interface SequenceRows {
  readonly cache: LatentCache;
  readonly firstRow: number;
  readonly count: number;
}

export interface AbsorbedCall {
  readonly layerIndex: number;
  readonly sequences: readonly SequenceRows[];
  readonly x: Tensor<ComputeType>;
  /** Added to. */
  readonly out: Tensor<FloatType>;
}

/**
 * Scores that exist at once; more tokens are taken in blocks. By feel: 16 MiB, about what caches
 * hold.
 */
const SCORE_ELEMENTS_MAX = 2 ** 22;

/** Write the new tokens' rows into their caches and add the attention's output to `out`. */
export function absorbedAttention(layer: MlaLayer, pass: Pass, call: AbsorbedCall): void {
  const { x, out, sequences } = call;
  const { scratch, floatType } = pass;
  const { numHeads, kvLoraRank, qkRopeHeadDim } = layer.config;
  using _mark = scratch.mark();
  writeRows(layer, pass, call);
  const query = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank + qkRopeHeadDim]);
  absorbQuery(layer, pass, x, query);
  const mixed = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank]);
  for (const sequence of sequences) attendSequence(layer, pass, call, sequence, query, mixed);
  const heads = expandValues(layer, pass, mixed);
  layer.output.forward(pass, copyToCompute(pass, scratch, heads), out, "accumulate");
}

/** [latent | key] of the new tokens, into the caches. */
function writeRows(layer: MlaLayer, pass: Pass, { layerIndex, sequences, x }: AbsorbedCall): void {
  const { scratch, device, floatType } = pass;
  const { kvLoraRank, qkRopeHeadDim } = layer.config;
  using _mark = scratch.mark();
  const down = scratch.allocate(floatType, [x.rows, kvLoraRank + qkRopeHeadDim]);
  layer.keyValueDown.forward(pass, x, down, "overwrite");
  const latent = layer.latentNorm.compute(pass, scratch, layer.latentOf(down));
  const key = layer.ropeOf(down);
  turn(device, pass.positions, key, "forward");
  for (const { cache, firstRow, count } of sequences) {
    const rows = cache.rows(layerIndex, cache.length, cache.length + count);
    const [start, end] = [firstRow, firstRow + count];
    castRows(device, { x: sliceRows(latent, start, end), out: layer.latentOf(rows) });
    castRows(device, { x: sliceRows(key, start, end), out: layer.ropeOf(rows) });
  }
}

/** The query of each head, its nope part projected into the latent. */
function absorbQuery(
  layer: MlaLayer,
  pass: Pass,
  x: Tensor<ComputeType>,
  query: Tensor<FloatType>,
): void {
  const { scratch, device } = pass;
  const { numHeads, qkNopeHeadDim, qkRopeHeadDim, kvLoraRank } = layer.config;
  using _mark = scratch.mark();
  const q = projectQuery(layer, pass, x);
  const qRope = layer.ropeOfHeads(q);
  turn(device, pass.positions, qRope, "forward");
  castRows(device, { x: qRope, out: layer.ropeOf(query) });
  const { keyUp, headStride } = layer.absorbedWeights;
  const perToken = reshape(query, [x.rows, numHeads * query.columns]);
  matmul(device, {
    transposition: "nn",
    a: sliceColumns(q, 0, qkNopeHeadDim),
    b: keyUp,
    out: sliceColumns(perToken, 0, kvLoraRank),
    batch: {
      count: numHeads,
      aStride: qkNopeHeadDim + qkRopeHeadDim,
      bStride: headStride,
      outStride: query.columns,
    },
  });
}

function projectQuery(layer: MlaLayer, pass: Pass, x: Tensor<ComputeType>): Tensor<FloatType> {
  const { scratch, floatType } = pass;
  const projection = layer.queryProjection;
  const up = projection.kind === "direct" ? projection.query : projection.up;
  const q = scratch.allocate(floatType, [x.rows, up.weight.shape[0]]);
  if (projection.kind === "direct") {
    up.forward(pass, x, q, "overwrite");
    return q;
  }
  const queryDown = scratch.allocate(floatType, [x.rows, projection.down.weight.shape[0]]);
  projection.down.forward(pass, x, queryDown, "overwrite");
  up.forward(pass, projection.norm.compute(pass, scratch, queryDown), q, "overwrite");
  return q;
}

/** Probabilities over the rows of one sequence's cache, and the latents mixed by them. */
function attendSequence(
  layer: MlaLayer,
  pass: Pass,
  { layerIndex }: AbsorbedCall,
  { cache, firstRow, count }: SequenceRows,
  query: Tensor<FloatType>,
  mixed: Tensor<FloatType>,
): void {
  const { scratch, device, floatType } = pass;
  const { numHeads } = layer.config;
  const numKeysMost = cache.length + count;
  const blockTokens = Math.max(1, floorDiv(SCORE_ELEMENTS_MAX, numHeads * numKeysMost));
  for (let start = 0; start < count; start += blockTokens) {
    using _mark = scratch.mark();
    const end = Math.min(count, start + blockTokens);
    const numKeys = cache.length + end;
    const rows = cache.rows(layerIndex, 0, numKeys);
    const [first, last] = [(firstRow + start) * numHeads, (firstRow + end) * numHeads];
    const scores = scratch.allocate(floatType, [last - first, numKeys]);
    const a = sliceRows(query, first, last);
    matmul(device, { transposition: "nt", a, b: rows, out: scores });
    const limits = scratch.allocate("i32", [1, last - first]);
    const limitOf = view(limits);
    for (let token = start; token < end; token++) {
      const at = (token - start) * numHeads;
      limitOf.fill(cache.length + token + 1, at, at + numHeads);
    }
    softmaxCausal(device, { x: scores, limits, scale: layer.scale, out: scores });
    const out = sliceRows(mixed, first, last);
    matmul(device, { transposition: "nn", a: scores, b: layer.latentOf(rows), out });
  }
}

/** [T, H·V]: each head's output from its mixed latents. */
function expandValues(layer: MlaLayer, pass: Pass, mixed: Tensor<FloatType>): Tensor<FloatType> {
  const { numHeads, kvLoraRank, vHeadDim } = layer.config;
  const { valueUp, headStride } = layer.absorbedWeights;
  const perToken = reshape(mixed, [divExact(mixed.rows, numHeads), numHeads * kvLoraRank]);
  const heads = pass.scratch.allocate(pass.floatType, [perToken.rows, numHeads * vHeadDim]);
  matmul(pass.device, {
    transposition: "nt",
    a: sliceColumns(perToken, 0, kvLoraRank),
    b: valueUp,
    out: sliceColumns(heads, 0, vHeadDim),
    batch: { count: numHeads, aStride: kvLoraRank, bStride: headStride, outStride: vHeadDim },
  });
  return heads;
}
