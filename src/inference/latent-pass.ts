/**
 * @file What a pass is told of its tokens: which they are, their positions, their places among the
 * latent blocks, and what attention over them is divided into. The same for all layers.
 *
 * Allocated by shape and filled for each pass, so that a recorded pass finds new tokens where the
 * ones before stood.
 */
import { divExact, floorDiv } from "../base/integers.ts";
import {
  LATENT_BLOCK_TOKENS,
  planLatentTiles,
  TILE_COLUMNS,
} from "../kernels/latent-attention/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import type { LatentCache } from "./latent-cache.ts";

/** The next `count` positions of a cache, from `position` on, as rows from `firstToken` on. */
export interface SequenceTokens {
  readonly cache: LatentCache;
  readonly firstToken: number;
  readonly count: number;
  readonly position: number;
}

export interface PassCall {
  readonly sequences: readonly SequenceTokens[];
  readonly tokens: Int32Array;
  /** Rows of logits of each sequence, from its end. */
  readonly wanted: readonly number[];
}

export interface LatentPass {
  /** Row of each token among the rows of all blocks, [1, T]. */
  readonly places: Tensor<"i32">;
  /** Blocks of each sequence, [S, blocks of the longest or more]. */
  readonly tables: Tensor<"i32">;
  readonly tiles: Tensor<"i32">;
}

/** All that a pass over some tokens reads of them. */
export interface PassInputs extends LatentPass {
  readonly tokens: Tensor<"i32">;
  /** Position of each token, [1, T]. */
  readonly ofTokens: Tensor<"i32">;
}

export interface InputShape {
  readonly counts: readonly number[];
  /** Blocks that a sequence may have. */
  readonly tableColumns: number;
  readonly numHeads: number;
  readonly numThreads: number;
}

/** Memory for the inputs of passes of a shape. */
export function allocateInputs(arena: Arena, shape: InputShape): PassInputs {
  const { counts, tableColumns } = shape;
  const numTokens = counts.reduce((sum, count) => sum + count, 0);
  const row = (columns: number): Tensor<"i32"> => arena.allocate("i32", [1, columns]);
  return {
    tokens: row(numTokens),
    ofTokens: row(numTokens),
    places: row(numTokens),
    tables: arena.allocate("i32", [counts.length, tableColumns]),
    tiles: arena.allocate("i32", [countTiles(shape), TILE_COLUMNS.length]),
  };
}

/** Fill them for tokens of sequences of that shape, whose blocks are reserved. */
export function fillInputs(
  inputs: PassInputs,
  shape: InputShape,
  pass: Pick<PassCall, "sequences" | "tokens">,
): void {
  const { sequences, tokens } = pass;
  fillFrom(inputs.tokens, tokens);
  const [positions, places] = [view(inputs.ofTokens), view(inputs.places)];
  const tables = view(inputs.tables);
  sequences.forEach(({ cache, firstToken, count, position: first }, sequence) => {
    for (let index = 0; index < count; index++) {
      const [row, position] = [firstToken + index, first + index];
      positions[row] = position;
      const block = cache.blocks[floorDiv(position, LATENT_BLOCK_TOKENS)]!;
      places[row] = block * LATENT_BLOCK_TOKENS + (position % LATENT_BLOCK_TOKENS);
    }
    const start = sequence * shape.tableColumns;
    tables.fill(0, start, start + shape.tableColumns);
    tables.set(cache.blocks, start);
  });
  fillFrom(
    inputs.tiles,
    tilesOf(
      sequences.map(({ position }) => position),
      shape,
    ),
  );
}

/** What attention over sequences of a shape is divided into. */
export function countTiles(shape: InputShape): number {
  const positions = shape.counts.map(() => 0);
  return divExact(tilesOf(positions, shape).length, TILE_COLUMNS.length);
}

/** How many and how long they are depends on the shape alone. */
function tilesOf(positions: readonly number[], shape: InputShape): number[] {
  let firstToken = 0;
  const sequences = shape.counts.map((count, index) => {
    const sequence = { firstToken, count, position: positions[index]! };
    firstToken += count;
    return sequence;
  });
  return planLatentTiles(sequences, shape);
}

/** Positions that a pass needs tables for. */
export function endOf(sequences: readonly SequenceTokens[]): number {
  return Math.max(...sequences.map(({ position, count }) => position + count));
}

/** Of each sequence, so many rows from its end. */
export function wantedRowsOf({ sequences, wanted }: PassCall): number[] {
  return sequences.flatMap(({ firstToken, count }, index) => {
    const rows = wanted[index]!;
    return Array.from({ length: rows }, (_, row) => firstToken + count - rows + row);
  });
}

export function countRows(counts: readonly number[]): number {
  return counts.reduce((total, count) => total + count, 0);
}

export function copyOfLogits(logits: Tensor<FloatType>): Float32Array {
  return new Float32Array(view(logits));
}
