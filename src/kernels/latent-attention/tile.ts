/** @file One tile of a launch taken apart; shared by all latent attention bodies. */
import { floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { slot } from "../kernel.ts";
import { LATENT_ATTENTION_AT as AT, TILE_AT, TILE_COLUMNS } from "./contract.ts";

/** A run of query rows of one sequence. */
export interface LatentTile {
  readonly firstRow: number;
  readonly numRows: number;
  /** Keys that row `firstRow + index` sees; never falls as `index` rises. */
  keysOf(index: number): number;
  /** Byte offset of the number of its sequence's first block. */
  readonly tableOffset: number;
  /** The pool's block that holds positions [64 · index, 64 · index + 64) of the sequence. */
  blockOf(index: number): number;
}

export function latentTile(slots: Float64Array, memory: CpuMemory, task: number): LatentTile {
  const words = memory.i32;
  const first = slot(slots, AT.tilesOffset) / 4 + task * TILE_COLUMNS.length;
  const firstRow = words[first + TILE_AT.firstRow]!;
  const sequence = words[first + TILE_AT.sequence]!;
  const keysMinusToken = words[first + TILE_AT.keysMinusToken]!;
  const numHeads = slot(slots, AT.numHeads);
  const table = slot(slots, AT.tablesOffset) / 4 + sequence * slot(slots, AT.tablesRowStride);
  return {
    firstRow,
    numRows: words[first + TILE_AT.numRows]!,
    tableOffset: table * 4,
    keysOf: (index) => floorDiv(firstRow + index, numHeads) + keysMinusToken,
    blockOf: (index) => words[table + index]!,
  };
}
