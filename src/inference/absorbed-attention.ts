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
  const { down, first } = projectInput(layer, pass, x);
  writeRows(layer, pass, call, down);
  const query = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank + qkRopeHeadDim]);
  absorbQuery(layer, pass, first, query);
  const mixed = scratch.allocate(floatType, [x.rows * numHeads, kvLoraRank]);
  const { tables, tiles } = latents;
  const where = { ...cached, tables, tiles, numHeads, scale: layer.scale };
  latentAttention(device, { ...where, query, out: mixed });
  const heads = expandValues(layer, pass, mixed);
  layer.output.forward(pass, copyToCompute(pass, scratch, heads), out, "accumulate");
}

/** Both products with the layer's input: [latent | key], and the query or its compressed form. */
function projectInput(
  layer: MlaLayer,
  pass: Pass,
  x: Tensor<ComputeType>,
): Readonly<Record<"down" | "first", Tensor<FloatType>>> {
  const { scratch, device, floatType } = pass;
  const { keyValueDown, queryProjection } = layer;
  const query = queryProjection.kind === "direct" ? queryProjection.query : queryProjection.down;
  const [down, first] = [keyValueDown, query].map(({ weight }) =>
    scratch.allocate(floatType, [x.rows, weight.shape[0]]),
  ) as [Tensor<FloatType>, Tensor<FloatType>];
  const multiply = (): void => {
    keyValueDown.forward(pass, x, down, "overwrite");
    query.forward(pass, x, first, "overwrite");
  };
  // For scaled weights the input is quantised first, by a launch that the product waits for.
  if (query.weight.scaled === null) device.together(multiply);
  else multiply();
  return { down, first };
}

/** Latents and keys of the new tokens, into their places. */
function writeRows(
  layer: MlaLayer,
  pass: Pass,
  { latents, cached }: AbsorbedCall,
  down: Tensor<FloatType>,
): void {
  const { scratch, device } = pass;
  using _mark = scratch.mark();
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
  first: Tensor<FloatType>,
  query: Tensor<FloatType>,
): void {
  const { scratch, device } = pass;
  const { numHeads, qkNopeHeadDim, qkRopeHeadDim, kvLoraRank } = layer.config;
  using _mark = scratch.mark();
  const q = projectQuery(layer, pass, first);
  const qRope = layer.ropeOfHeads(q);
  turn(device, pass.positions, qRope, "forward");
  castRows(device, { x: qRope, out: layer.ropeOf(query) });
  const { keyUp, headStride } = layer.absorbedWeights;
  const perToken = reshape(query, [first.rows, numHeads * query.columns]);
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

function projectQuery(
  { queryProjection }: MlaLayer,
  pass: Pass,
  first: Tensor<FloatType>,
): Tensor<FloatType> {
  if (queryProjection.kind === "direct") return first;
  const { scratch, floatType } = pass;
  const { up, norm } = queryProjection;
  const q = scratch.allocate(floatType, [first.rows, up.weight.shape[0]]);
  up.forward(pass, norm.compute(pass, scratch, first), q, "overwrite");
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
