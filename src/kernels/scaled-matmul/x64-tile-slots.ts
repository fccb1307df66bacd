/**
 * @file The arguments and the local variables of the products of scaled operands on AMX tiles.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Memory, mem, r } from "../../codegen/x64/operands.ts";
import { slotIndex } from "../kernel.ts";
import {
  PANEL_ROW_BYTES,
  TILE_BLOCK,
  TILE_CONFIGURATION_WORDS,
  TILE_SUMS_BYTES,
  type TileUnit,
} from "../matmul/x64-tile-core.ts";
import { PIECES_MAX } from "./x64-scales.ts";

const SLOTS = [
  "a",
  "aStrideBytes",
  "b",
  "bStrideBytes",
  "out",
  "outStrideBytes",
  "rows",
  "columns",
  "depth",
  /** Of depth of a panel and of a piece: whole units. */
  "words",
  "pieceWords",
  "accumulate",
  /** Rows of A that are packed at once: a panel's or, in tn, a multiple. */
  "rowsAtOnce",
  /** The panels of those, all of B's, `TILES_BUFFER_BYTES`. */
  "aPanels",
  "bPanels",
  "buffer",
  "aTables",
  "bTables",
  /** Those of A's first row and piece where they stand, and bytes to the next row's and piece's. */
  "scalesOfA",
  "rowScaleBytes",
  "aPieceScaleBytes",
  "pieces",
  /** `TILES_SCALES_BYTES` for two panels of A, at a multiple. */
  "aScales",
  /** Those of B's first panel and piece, and bytes to the next panel's and piece's. */
  "bScales",
  "panelScaleBytes",
  "bPieceScaleBytes",
  /** Whether the columns of a panel have one scale: else they have 32 side by side. */
  "sharesColumnScales",
] as const;

/** Position of each argument; places are addresses. */
export const TILES_AT: Record<(typeof SLOTS)[number], number> = slotIndex(SLOTS);
export type SlotName = (typeof SLOTS)[number];

/** Sums, promoted sums, and a row of negative zeros. */
export const TILES_BUFFER_BYTES: number = 2 * TILE_SUMS_BYTES + PANEL_ROW_BYTES;

/** Scales of a panel of A, and of the one before, whose last piece may still wait. */
export const SCALES_BYTES: number = PIECES_MAX * TILE_BLOCK * 4;
export const TILES_SCALES_BYTES: number = 2 * SCALES_BYTES;

/** What changes on the way through the blocks, in local variables. */
const LOCALS = [
  "rowsLeft",
  "columnsLeft",
  "packedLeft",
  "aPanel",
  "aSource",
  "scalesOfA",
  "outRow",
  "tile",
  "aScales",
  "bScales",
  "aPieceScales",
  "bPieceScales",
  "wordsLeft",
  "restOfPiece",
  // The piece that waits for its promotion: scales, what it is added to, where it goes.
  "rowScales",
  "columnScales",
  "addend",
  "addendStride",
  "promoted",
  "promotedStride",
  "columnsOfPiece",
] as const;
export type LocalName = (typeof LOCALS)[number];

/** What the parts of the kernel share. */
export interface Frame {
  readonly a: X64;
  readonly tiles: TileUnit;
  readonly local: (name: LocalName) => Memory;
}

/** Local variables of the kernel: those, then room for a configuration of tiles. */
export const NUM_LOCALS: number = LOCALS.length + TILE_CONFIGURATION_WORDS;

/** The variables by name, and the room, of a kernel's `local`. */
export function frameOf(
  a: X64,
  tiles: TileUnit,
  local: (index: number) => Memory,
): Frame & { readonly configuration: Memory } {
  return {
    a,
    tiles,
    local: (name) => local(LOCALS.indexOf(name)),
    configuration: local(LOCALS.length),
  };
}

/** Where an argument stands. */
export const slotOf = (name: SlotName): Memory => mem(r.rdi, 8 * TILES_AT[name]);

/** local = slot; clobbers rax. */
export function setFromSlot({ a, local }: Frame, name: LocalName, slot: SlotName): void {
  loadSlot(a, r.rax, TILES_AT[slot]);
  a.mov(local(name), r.rax);
}
