/**
 * @file Products of scaled operands on AMX tiles, as two native functions: one packs columns of B,
 * one multiplies rows of A by them, which it packs a panel or a few at a time.
 *
 * Operands are packed as bf16, which holds every FP8 value exactly. B's panels fill half of the
 * second-level cache; panels of A are made, used for all of them and overwritten: neither goes
 * through the third level. The scales of a panel of A are brought together beside it.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r } from "../../codegen/x64/operands.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { PACK_ARGUMENTS } from "../matmul/x64-pack.ts";
import {
  emitTileConfiguration,
  IDLE_SUM,
  PANEL_ROW_BYTES,
  TILE_AT,
  TILE_BLOCK,
  type TileUnit,
} from "../matmul/x64-tile-core.ts";
import {
  emitPackLanes,
  emitPackRows,
  emitPackTransposed,
  emitPackTurned,
} from "./x64-code-pack.ts";
import { emitLoadCodeTables } from "./x64-code-tables.ts";
import { AT, emitBlockOfAnyHeight, emitNothingWaits, emitPromoteAll } from "./x64-tile-core.ts";
import {
  type Frame,
  frameOf,
  type LocalName,
  NUM_LOCALS,
  SCALES_BYTES,
  type SlotName,
  setFromSlot,
  TILES_AT,
} from "./x64-tile-slots.ts";

/** Code that packs `columns` of B. */
export function emitPackB(transposition: Transposition): Uint8Array {
  return emitKernel({
    body: (a) => {
      loadSlot(a, r.rax, TILES_AT.bTables);
      emitLoadCodeTables(a, r.rax);
      const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
      loadSlot(a, source, TILES_AT.b);
      loadSlot(a, strideBytes, TILES_AT.bStrideBytes);
      loadSlot(a, panels, TILES_AT.bPanels);
      loadSlot(a, lanes, TILES_AT.columns);
      loadSlot(a, depth, TILES_AT.depth);
      if (transposition === "nt") emitPackTransposed(a);
      else emitPackLanes(a);
    },
  });
}

/** Code that multiplies `rows` of A by packed B; with the processor's tiles, or those of `unit`. */
export function emitMultiplyRows(
  transposition: Transposition,
  unit: ((a: X64) => TileUnit) | null,
): Uint8Array {
  return emitKernel({
    numLocals: NUM_LOCALS,
    body: (a, local) => {
      const frame = frameOf(a, unit === null ? a : unit(a), local);
      emitTileConfiguration(a, frame.tiles, frame.configuration);
      emitRowPanels(frame, transposition);
      frame.tiles.tilerelease();
    },
  });
}

/** Emits `body` for panels of 32 while `counter` has any left. */
function emitEachPanel({ a, local }: Frame, counter: LocalName, body: () => void): void {
  const top = a.label();
  a.bind(top);
  body();
  a.sub(local(counter), TILE_BLOCK);
  a.cmp(local(counter), 0);
  a.j("g", top);
}

function emitRowPanels(frame: Frame, transposition: Transposition): void {
  const { a, local } = frame;
  const advance = (name: LocalName, slot: SlotName, times: number): void => {
    loadSlot(a, r.rax, TILES_AT[slot]);
    a.imul(r.rax, r.rax, times);
    a.add(local(name), r.rax);
  };
  for (const [name, slot] of [
    ["rowsLeft", "rows"],
    ["aSource", "a"],
    ["scalesOfA", "scalesOfA"],
    ["outRow", "out"],
    ["aScales", "aScales"],
  ] as const) {
    setFromSlot(frame, name, slot);
  }
  emitNothingWaits(frame);
  a.v("vpxord", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
  a.mov(local("packedLeft"), 0);
  emitEachPanel(frame, "rowsLeft", () => {
    const packed = a.label();
    a.cmp(local("packedLeft"), 0);
    a.j("g", packed);
    emitPackA(frame, transposition);
    a.bind(packed);
    emitCopyScales(frame);
    a.mov(TILE_AT.aStride, 64);
    a.mov(TILE_AT.bStride, PANEL_ROW_BYTES);
    loadSlot(a, AT.outStride, TILES_AT.outStrideBytes);
    loadSlot(a, TILE_AT.b, TILES_AT.bPanels);
    setFromSlot(frame, "columnsLeft", "columns");
    setFromSlot(frame, "bScales", "bScales");
    a.mov(r.rax, local("outRow"));
    a.mov(local("tile"), r.rax);
    emitEachPanel(frame, "columnsLeft", () => {
      emitBlockOfAnyHeight(frame);
      a.add(local("tile"), PANEL_ROW_BYTES);
      advance("bScales", "panelScaleBytes", 1);
    });
    a.sub(local("packedLeft"), TILE_BLOCK);
    advance("aPanel", "words", PANEL_ROW_BYTES);
    advance("outRow", "outStrideBytes", TILE_BLOCK);
  });
  emitPromoteAll(frame);
}

/** Packs the next rows of A, as many as are packed at once or there are. */
function emitPackA(frame: Frame, transposition: Transposition): void {
  const { a, local } = frame;
  const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
  loadSlot(a, r.rax, TILES_AT.aTables);
  emitLoadCodeTables(a, r.rax);
  loadSlot(a, strideBytes, TILES_AT.aStrideBytes);
  loadSlot(a, panels, TILES_AT.aPanels);
  a.mov(local("aPanel"), panels);
  loadSlot(a, depth, TILES_AT.depth);
  loadSlot(a, lanes, TILES_AT.rowsAtOnce);
  a.mov(local("packedLeft"), lanes);
  a.mov(source, local("aSource"));
  a.mov(r.rax, lanes);
  if (transposition !== "tn") a.imul(r.rax, strideBytes);
  a.add(local("aSource"), r.rax);
  a.cmp(lanes, local("rowsLeft"));
  a.cmov("g", lanes, local("rowsLeft"));
  if (transposition === "tn") emitPackTurned(a);
  else emitPackRows(a);
}

/** The scales of the panel's rows, piece by piece. */
function emitCopyScales({ a, local }: Frame): void {
  const [from, to, rows, rowBytes, pieceBytes] = [r.r8, r.r9, r.rcx, r.r10, r.r11];
  const [fromPiece, toPiece, pieces, left] = [r.r12, r.r13, r.r14, r.r15];
  loadSlot(a, rowBytes, TILES_AT.rowScaleBytes);
  loadSlot(a, pieceBytes, TILES_AT.aPieceScaleBytes);
  loadSlot(a, pieces, TILES_AT.pieces);
  a.xor(local("aScales"), SCALES_BYTES);
  a.mov(to, local("aScales"));
  a.mov(from, local("scalesOfA"));
  a.mov(rows, TILE_BLOCK);
  a.cmp(rows, local("rowsLeft"));
  a.cmov("g", rows, local("rowsLeft"));
  a.countdown(rows, 1, () => {
    a.mov(fromPiece, from);
    a.mov(toPiece, to);
    a.mov(left, pieces);
    a.countdown(left, 1, () => {
      a.mov32(r.rax, mem(fromPiece));
      a.mov32(mem(toPiece), r.rax);
      a.add(fromPiece, pieceBytes);
      a.add(toPiece, TILE_BLOCK * 4);
    });
    a.add(from, rowBytes);
    a.add(to, 4);
  });
  a.mov(local("scalesOfA"), from);
}
