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
 * Projections are rounded as in training, latents as products take them; scores and probabilities
 * are in the float type, and so are both absorbed products where there are master values of W_UK
 * and W_UV; without, they are as W_UK and W_UV are kept. All sequences of a pass are one launch of
 * `latentAttention`, and a token's result has the same bits whatever else is in the pass. Source:
 * DeepSeek-V2 report §2.1.2 (absorption).
 */
import { divExact } from "../base/integers.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { scatterRows } from "../kernels/gather/contract.ts";
import { latentAttention } from "../kernels/latent-attention/contract.ts";
import { matmul } from "../kernels/matmul/contract.ts";
import type { MlaLayer } from "../model/mla.ts";
import type { ComputeType } from "../model/parameters.ts";
import { copyToCompute, type Pass } from "../model/pass.ts";
import { turn } from "../model/rope.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, sliceColumns, type Tensor } from "../tensor/tensor.ts";
import type { LatentLayer } from "./latent-blocks.ts";
import type { LatentPass } from "./latent-pass.ts";

export interface AbsorbedCall {
  readonly latents: LatentPass;
  readonly cached: LatentLayer;
  readonly x: Tensor<ComputeType>;
  /** Added to. */
  readonly out: Tensor<FloatType>;
}

/** Write the new tokens' rows into their blocks and add the attention's output to `out`. */
export function absorbedAttention(layer: MlaLayer, pass: Pass, call: AbsorbedCall): void {
  const { x, out, latents, cached } = call;
  const { scratch, floatType, device } = pass;
  const { numHeads, kvLoraRank, qkRopeHeadDim } = layer.config;
  using _mark = scratch.mark();
  writeRows(layer, pass, call);
  const query = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank + qkRopeHeadDim]);
  absorbQuery(layer, pass, x, query);
  const mixed = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank]);
  const { tables, tiles } = latents;
  const where = { ...cached, tables, tiles, numHeads, scale: layer.scale };
  latentAttention(device, { ...where, query, out: mixed });
  const heads = expandValues(layer, pass, mixed);
  layer.output.forward(pass, copyToCompute(pass, scratch, heads), out, "accumulate");
}

/** Latents and keys of the new tokens, into their places. */
function writeRows(layer: MlaLayer, pass: Pass, { latents, cached, x }: AbsorbedCall): void {
  const { scratch, device, floatType } = pass;
  const { kvLoraRank, qkRopeHeadDim } = layer.config;
  using _mark = scratch.mark();
  const down = scratch.allocate(floatType, [x.rows, kvLoraRank + qkRopeHeadDim]);
  layer.keyValueDown.forward(pass, x, down, "overwrite");
  const latent = layer.latentNorm.compute(pass, scratch, layer.latentOf(down));
  const key = layer.ropeOf(down);
  turn(device, pass.positions, key, "forward");
  scatterRows(device, { x: latent, index: latents.places, out: cached.latents });
  scatterRows(device, { x: key, index: latents.places, out: cached.keys });
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
    a: sliceColumns(roundedAs(pass, keyUp, q), 0, qkNopeHeadDim),
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

/** [T, H·V]: each head's output from its mixed latents. */
function expandValues(layer: MlaLayer, pass: Pass, mixed: Tensor<FloatType>): Tensor<FloatType> {
  const { numHeads, kvLoraRank, vHeadDim } = layer.config;
  const { valueUp, headStride } = layer.absorbedWeights;
  const perToken = reshape(mixed, [divExact(mixed.rows, numHeads), numHeads * kvLoraRank]);
  const heads = pass.scratch.allocate(pass.floatType, [perToken.rows, numHeads * vHeadDim]);
  matmul(pass.device, {
    transposition: "nt",
    a: sliceColumns(roundedAs(pass, valueUp, perToken), 0, kvLoraRank),
    b: valueUp,
    out: sliceColumns(heads, 0, vHeadDim),
    batch: { count: numHeads, aStride: kvLoraRank, bStride: headStride, outStride: vHeadDim },
  });
  return heads;
}

/** `x` as a product with `weight` takes it. */
function roundedAs(
  pass: Pass,
  weight: Tensor<ComputeType>,
  x: Tensor<FloatType>,
): Tensor<ComputeType> {
  return weight.dtype === x.dtype ? x : copyToCompute(pass, pass.scratch, x);
}
