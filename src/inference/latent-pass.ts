/**
 * @file Where the tokens of a pass stand: their positions, their places among the latent blocks,
 * and what attention over them is divided into. The same for all layers.
 */
import { floorDiv } from "../base/integers.ts";
import {
  LATENT_BLOCK_TOKENS,
  planLatentTiles,
  TILE_COLUMNS,
} from "../kernels/latent-attention/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { fillFrom } from "../tensor/view.ts";
import type { LatentCache } from "./latent-cache.ts";

/** The next `count` positions of a cache, from `position` on, as rows from `firstToken` on. */
export interface SequenceTokens {
  readonly cache: LatentCache;
  readonly firstToken: number;
  readonly count: number;
  readonly position: number;
}

export interface LatentPass {
  /** Row of each token among the rows of all blocks, [1, T]. */
  readonly places: Tensor<"i32">;
  /** Blocks of each sequence, [S, blocks of the longest]. */
  readonly tables: Tensor<"i32">;
  readonly tiles: Tensor<"i32">;
}

/** The pass over these sequences, whose blocks are reserved. */
export function planLatentPass(
  arena: Arena,
  sequences: readonly SequenceTokens[],
  options: { readonly numHeads: number; readonly numThreads: number },
): LatentPass {
  const placesOf = ({ cache, count, position }: SequenceTokens): number[] =>
    Array.from({ length: count }, (_, index) => {
      const block = cache.blocks[floorDiv(position + index, LATENT_BLOCK_TOKENS)]!;
      return block * LATENT_BLOCK_TOKENS + ((position + index) % LATENT_BLOCK_TOKENS);
    });
  const places = sequences.flatMap(placesOf);
  const most = Math.max(...sequences.map(({ cache }) => cache.blocks.length));
  const tables = sequences.flatMap(({ cache }) =>
    Array.from({ length: most }, (_, index) => cache.blocks[index] ?? 0),
  );
  const tiles = planLatentTiles(sequences, options);
  return {
    places: integers(arena, [1, places.length], places),
    tables: integers(arena, [sequences.length, most], tables),
    tiles: integers(arena, [tiles.length / TILE_COLUMNS.length, TILE_COLUMNS.length], tiles),
  };
}

function integers(
  arena: Arena,
  shape: readonly number[],
  values: readonly number[],
): Tensor<"i32"> {
  const tensor = arena.allocate("i32", shape);
  fillFrom(tensor, values);
  return tensor;
}
