/**
 * @file The latent block: 64 consecutive positions of a sequence, the unit that is cached, shared
 * and stored; and what a cache asks of the pool that owns the blocks.
 *
 * A block's latents depend on all tokens before it, so a block is only ever found by its whole
 * prefix. Blocks begin at multiples of 64; a ragged end is never cached.
 */

/** Positions in a latent block. */
export const BLOCK_TOKENS = 64;

/** The owner of the blocks, which counts the references to each. */
export interface BlockReferences {
  /** Adds a reference. */
  retain(blockId: number): void;
  /** Takes a reference back; at none left the block is free for other content. */
  release(blockId: number): void;
  /** References held now. */
  countReferences(blockId: number): number;
}

/** A block of tokens and the pool's block that holds their latents. */
export interface CachedBlock {
  readonly tokens: Int32Array;
  readonly blockId: number;
}

/** The tokens of block `blockIndex`, copied. */
export function copyBlockTokens(tokens: Int32Array, blockIndex: number): Int32Array<ArrayBuffer> {
  return new Int32Array(
    tokens.subarray(blockIndex * BLOCK_TOKENS, (blockIndex + 1) * BLOCK_TOKENS),
  );
}

/** How many tokens `cached` and `tokens` from `start` on have in common; the latter may end. */
export function countCommonTokens(cached: Int32Array, tokens: Int32Array, start: number): number {
  const most = Math.min(cached.length, tokens.length - start);
  let count = 0;
  while (count < most && cached[count] === tokens[start + count]) count++;
  return count;
}
