/**
 * @file Attention over a latent cache in blocks: queries already projected into the latent, of many
 * sequences at once, each over the rows that its block table names.
 *
 *     score[r,j] = scale · query_r · [latent_j | key_j]                        j < keys of r
 *     out_r      = Σ_j softmax(score[r,·])[j] · latent_j
 *
 *   R query rows, one a head of a token, a token's H heads one after another; P rows of all blocks
 *   query_R_CK, out_RC   float
 *   latents_PC           one layer's; block b is rows [64b, 64b + 64); float or bf16
 *   keys_PK              beside them; float
 *   tables_SB          i32, the blocks of each sequence in the order of its positions
 *   tiles_N4           i32, what one task computes (planLatentTiles)
 *
 * A row's result depends on its own query, its keys' latents and their number alone: not on its
 * tile, on the sequences beside it, or on where the blocks lie. Keys beyond a row's own are not
 * looked at, so what stands in them, NaN or not, reaches nothing. A latent or key that is NaN makes
 * its rows NaN; an infinite one may leave some of their columns numbers. `out` overlaps no input.
 * Source: DeepSeek-V2 report §2.1.2 (absorption); blocks as in FlashMLA.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, roundUp } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { isContiguous } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { assertIndexes, assertMatrix, assertOperand } from "../door.ts";
import { slotIndex } from "../kernel.ts";

/** Positions of one block. */
export const LATENT_BLOCK_TOKENS = 64;
/** Query rows of one tile: what a body has scratch for. */
export const TILE_ROWS_MAX = 64;
/** Query rows that bodies compute at the price of one. */
const VECTOR_ROWS = 16;

export const LATENT_ATTENTION_SLOTS = [
  "numHeads",
  "latent",
  "key",
  "scale",
  "queryOffset",
  "queryRowStride",
  "latentsOffset",
  "latentsRowStride",
  "keysOffset",
  "keysRowStride",
  "tablesOffset",
  "tablesRowStride",
  "tilesOffset",
  "outOffset",
  "outRowStride",
] as const;
export const LATENT_ATTENTION_AT: Record<(typeof LATENT_ATTENTION_SLOTS)[number], number> =
  slotIndex(LATENT_ATTENTION_SLOTS);

/** By the dtype of the latents. Beside bf16 everything else is f32. */
export const LATENT_ATTENTION_VARIANTS = ["f32", "bf16", "f64"] as const;

/** Columns of `tiles`. */
export const TILE_COLUMNS = ["firstRow", "numRows", "sequence", "keysMinusToken"] as const;
export const TILE_AT: Record<(typeof TILE_COLUMNS)[number], number> = slotIndex(TILE_COLUMNS);

/** The tokens of one sequence in a launch: `count` tokens from `firstToken`, at `position` on. */
export interface LatentTokens {
  readonly firstToken: number;
  readonly count: number;
  /** Of the first of them in its sequence; it has position + 1 keys. */
  readonly position: number;
}

/**
 * The tiles of a launch, row after row of `tiles`: runs of query rows of one sequence, enough of
 * them for all threads. A row r of a tile has floor(r / numHeads) + keysMinusToken keys.
 *
 * Each sequence's rows are divided among the threads, in vectors of rows: one with a long context
 * may cost more than all others together. Fewer rows than that are divided all the same.
 */
export function planLatentTiles(
  sequences: readonly LatentTokens[],
  { numHeads, numThreads }: { readonly numHeads: number; readonly numThreads: number },
): number[] {
  const totalRows = numHeads * sequences.reduce((sum, { count }) => sum + count, 0);
  const fewRows = Math.min(VECTOR_ROWS, Math.max(1, ceilDiv(totalRows, numThreads)));
  return sequences.flatMap(({ firstToken, count, position }, sequence) => {
    const tiles: number[] = [];
    const fairRows = roundUp(ceilDiv(count * numHeads, numThreads), fewRows);
    const tileRows = Math.min(TILE_ROWS_MAX, fairRows);
    const end = (firstToken + count) * numHeads;
    for (let row = firstToken * numHeads; row < end; row += tileRows) {
      tiles.push(row, Math.min(tileRows, end - row), sequence, position - firstToken + 1);
    }
    return tiles;
  });
}

export interface LatentAttentionCall {
  readonly numHeads: number;
  readonly scale: number;
  readonly query: Tensor<FloatType>;
  readonly latents: Tensor<FloatType | "bf16">;
  readonly keys: Tensor<FloatType>;
  readonly tables: Tensor<"i32">;
  readonly tiles: Tensor<"i32">;
  readonly out: Tensor<FloatType>;
}

export function latentAttention(device: Device, call: LatentAttentionCall): void {
  const { numHeads, scale, query, latents, keys, tables, tiles, out } = call;
  const name = "latentAttention";
  const dtype = latents.dtype === "bf16" ? "f32" : latents.dtype;
  const [latent, key] = [latents.columns, keys.columns];
  assertMatrix(device, `${name} query`, query, [dtype], query.rows, latent + key);
  assertMatrix(device, `${name} keys`, keys, [dtype], latents.rows, key);
  assertMatrix(device, `${name} out`, out, [dtype], query.rows, latent);
  assertOperand(device, `${name} latents`, latents);
  assertOperand(device, `${name} tables`, tables);
  assertOperand(device, `${name} tiles`, tiles);
  assertIndexes(`${name} tables`, tables, 0, Math.floor(latents.rows / LATENT_BLOCK_TOKENS));
  assertTiles(call);
  device.launch(
    `${name}/${latents.dtype}`,
    [
      ...[numHeads, latent, key, scale, query.byteOffset, query.rowStride],
      ...[latents.byteOffset, latents.rowStride, keys.byteOffset, keys.rowStride],
      ...[tables.byteOffset, tables.rowStride, tiles.byteOffset, out.byteOffset, out.rowStride],
    ],
    tiles.rows,
  );
}

/** Tiles follow each other in the rows of the query, each within the blocks of its sequence. */
function assertTiles({ numHeads, query, tables, tiles }: LatentAttentionCall): void {
  assert(tiles.columns === TILE_COLUMNS.length, `latentAttention: a tile is 4 numbers`);
  assert(isContiguous(tiles), "latentAttention: tiles follow each other without a gap");
  const values = view(tiles);
  const keysMost = tables.columns * LATENT_BLOCK_TOKENS;
  let next = 0;
  let isSound = true;
  for (let at = 0; at < values.length; at += 4) {
    const [firstRow, numRows] = [values[at]!, values[at + 1]!];
    const [sequence, keysMinusToken] = [values[at + 2]!, values[at + 3]!];
    const [first, last] = [firstRow, firstRow + numRows - 1].map(
      (row) => Math.floor(row / numHeads) + keysMinusToken,
    );
    isSound &&= firstRow === next && numRows >= 1 && numRows <= TILE_ROWS_MAX;
    isSound &&= sequence >= 0 && sequence < tables.rows && first! >= 1 && last! <= keysMost;
    next = firstRow + numRows;
  }
  assert(isSound && next === query.rows, `latentAttention: tiles must cover ${query.rows} rows`);
}
