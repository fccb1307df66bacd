/**
 * @file The latents of 64 fixed tokens: what a decoder's arithmetic comes to, in all layers.
 *
 * Latents that were computed elsewhere may be used in place of this decoder's own only if they have
 * the same bits, and those depend on more than the weights: on the kernels this machine runs, on
 * the float type, on the version of this program. All of it shows here; a digest of the result
 * tells two arithmetics apart. (Not two that differ behind position 64 alone.)
 */
import { LATENT_BLOCK_TOKENS } from "../kernels/latent-attention/contract.ts";
import type { Decoder } from "./decoder.ts";

/** What a block of the tokens 0, 7, 14 … holds, as `LatentBlocks.read` gives it. */
export function probeLatents(decoder: Decoder): Uint8Array<ArrayBuffer> {
  const { vocabSize } = decoder.model.config;
  const tokens = Int32Array.from({ length: LATENT_BLOCK_TOKENS }, (_, i) => (7 * i) % vocabSize);
  const cache = decoder.openCache();
  decoder.forward([{ cache, tokens, logits: "none" }]);
  const latents = decoder.blocks.read(cache.blocks[0]!);
  cache.truncate(0);
  return latents;
}
