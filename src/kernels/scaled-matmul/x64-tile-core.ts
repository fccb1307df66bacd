/**
 * @file Blocks of scaled products on AMX tiles: 32×32 results, summed piece by piece and promoted.
 *
 *     out[m, n] (=|+=) Σ_p fma(Σ_{d in piece p} A[m, d] · B[d, n],  scaleA[m, p] · scaleB[p, n])
 *
 * A piece is summed in tiles and leaves through a buffer; beside the sums of the next piece, of
 * this block or of the one behind it, it is promoted into a second buffer, the last one into the
 * output. Pieces are whole units of depth; others are packed one by one.
 *
 *   scales    aScales[piece][32 rows]   bScales[panel][piece][32 columns, or one for all]      f32
 *
 * Rows that fill no panel do not meet the output in promotions, which take 32 rows: they are copied
 * between it and the second buffer.
 */
import { divExact } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, k, mem, merging, r, zeroing, zmm } from "../../codegen/x64/operands.ts";
import { emitLaneMasks } from "../matmul/x64-pack.ts";
import {
  emitClearTiles,
  emitSteps,
  emitStoreTiles,
  PANEL_ROW_BYTES,
  PANEL_WALK,
  STEP_WORDS,
  TILE_AT,
  TILE_BLOCK,
  TILE_SUMS_BYTES,
} from "../matmul/x64-tile-core.ts";
import { emitEither } from "../matmul/x64-vector-core.ts";
import { type Frame, setFromSlot, slotOf, TILES_AT } from "./x64-tile-slots.ts";

/** Registers of a promotion, beside `TILE_AT` and those of `emitSteps`. */
export const AT: Readonly<
  Record<
    "rowScales" | "addend" | "addendStride" | "promoted" | "promotedStride" | "asked" | "outStride",
    Gp
  >
> = {
  rowScales: r.rcx,
  addend: r.r8,
  addendStride: r.r9,
  promoted: r.r10,
  promotedStride: r.r11,
  asked: r.r12,
  outStride: r.r13,
};
const COLUMN_SCALES = [zmm(29), zmm(30)] as const;

/** Words of depth beside which a block's promotion is spread: a piece of 128, as a rule. */
const SPREAD_WORDS = 64;
const ROWS_BESIDE = divExact(TILE_BLOCK, divExact(SPREAD_WORDS, STEP_WORDS));

/** The next block of the output, of the rows that are left. */
export function emitBlockOfAnyHeight(frame: Frame): void {
  const { a, local } = frame;
  const [ragged, oneTile, done] = [a.label(), a.label(), a.label()];
  a.cmp(local("rowsLeft"), TILE_BLOCK);
  a.j("l", ragged);
  emitBlock(frame, 2, true);
  a.jmp(done);
  a.bind(ragged);
  a.cmp(local("rowsLeft"), 16);
  a.j("le", oneTile);
  emitBlock(frame, 2, false);
  a.jmp(done);
  a.bind(oneTile);
  emitBlock(frame, 1, false);
  a.bind(done);
}

/** A block of the output, piece by piece; `isWhole`: its 32 rows exist. */
function emitBlock(frame: Frame, numRowTiles: 1 | 2, isWhole: boolean): void {
  const { a, local } = frame;
  for (const operand of ["a", "b"] as const) {
    a.mov(r.rax, local(`${operand}Scales`));
    a.mov(local(`${operand}PieceScales`), r.rax);
  }
  setFromSlot(frame, "wordsLeft", "words");
  a.mov(TILE_AT.a, local("aPanel"));
  const [another, last] = [a.label(), a.label()];
  emitPiece(frame, { numRowTiles, asksForOutput: isWhole });
  emitWait(frame, isWhole ? "output" : "copy", isWhole);
  a.bind(another);
  a.cmp(local("wordsLeft"), 0);
  a.j("le", last);
  emitPiece(frame, { numRowTiles, asksForOutput: false });
  emitWait(frame, "promoted", isWhole);
  a.jmp(another);
  a.bind(last);
  if (isWhole) return;
  emitPromoteAll(frame);
  emitEachRowOf(frame, (row, out) => {
    for (let v = 0; v < 2; v++) {
      a.v("vmovups", [zmm(v), mem(row, v * 64)]);
      a.v("vmovups", [mem(out, v * 64), zmm(v)], merging(k(1 + v)));
    }
  });
}

/**
 * The sums of the next piece, while the one that waits is promoted, and while the block's lines of
 * the output are asked for, if they are.
 */
function emitPiece(
  frame: Frame,
  options: { readonly numRowTiles: 1 | 2; readonly asksForOutput: boolean },
): void {
  const { a, tiles, local } = frame;
  const { numRowTiles, asksForOutput } = options;
  const { wordsLeft } = TILE_AT;
  loadSlot(a, wordsLeft, TILES_AT.pieceWords);
  a.cmp(wordsLeft, local("wordsLeft"));
  a.cmov("g", wordsLeft, local("wordsLeft"));
  a.sub(local("wordsLeft"), wordsLeft);
  a.mov(local("restOfPiece"), wordsLeft);
  a.sub(local("restOfPiece"), SPREAD_WORDS);
  emitBeginPromotion(frame);
  emitClearTiles(tiles, numRowTiles);
  if (asksForOutput) a.mov(AT.asked, local("tile"));
  a.mov(wordsLeft, local("restOfPiece"));
  a.add(wordsLeft, SPREAD_WORDS);
  a.mov(r.rsi, SPREAD_WORDS);
  a.cmp(wordsLeft, r.rsi);
  a.cmov("g", wordsLeft, r.rsi);
  emitSteps(a, tiles, numRowTiles, PANEL_WALK, () => {
    emitPromotion(a, ROWS_BESIDE);
    if (asksForOutput) emitAskForOutput(a, ROWS_BESIDE);
  });
  a.mov(wordsLeft, local("restOfPiece"));
  emitSteps(a, tiles, numRowTiles, PANEL_WALK);
  emitRestOfPromotion(frame);
  loadSlot(a, TILE_AT.buffer, TILES_AT.buffer);
  emitStoreTiles(tiles, numRowTiles);
}

/** Asks for the next rows of the block's output, past the first level: rows of one set fill it. */
function emitAskForOutput(a: X64, rows: number): void {
  for (let row = 0; row < rows; row++) {
    for (let v = 0; v < 2; v++) a.prefetch(mem(AT.asked, v * 64), 1);
    a.add(AT.asked, AT.outStride);
  }
}

/** promoted = those of the buffer; clobbers nothing else. */
function emitPromotedBuffer(a: X64, to: Gp): void {
  loadSlot(a, to, TILES_AT.buffer);
  a.add(to, TILE_SUMS_BYTES);
}

/**
 * The piece whose sums have left the tiles waits from now on. `onto` says what it is added to: a
 * first piece to the output, or to nothing where that is overwritten; by way of the buffer, if not
 * all rows exist (`copy`); any other to what is promoted of its block.
 */
function emitWait(frame: Frame, onto: "output" | "copy" | "promoted", isWhole: boolean): void {
  const { a, local } = frame;
  const [place, stride, other] = [r.r8, r.r9, r.r10];
  emitPromotedBuffer(a, place);
  a.mov(stride, PANEL_ROW_BYTES);
  // A last piece goes to the output.
  a.mov(local("promoted"), place);
  a.mov(local("promotedStride"), stride);
  if (isWhole) {
    const goesOn = a.label();
    a.cmp(local("wordsLeft"), 0);
    a.j("g", goesOn);
    a.mov(other, local("tile"));
    a.mov(local("promoted"), other);
    a.mov(local("promotedStride"), AT.outStride);
    a.bind(goesOn);
  }
  if (onto !== "promoted") {
    const [adds, known] = [a.label(), a.label()];
    a.cmp(slotOf("accumulate"), 0);
    a.j("ne", adds);
    a.add(place, TILE_SUMS_BYTES);
    a.mov(stride, 0);
    a.jmp(known);
    a.bind(adds);
    if (onto === "output") {
      a.mov(place, local("tile"));
      a.mov(stride, AT.outStride);
    } else {
      emitEachRowOf(frame, (row, out) => {
        for (let v = 0; v < 2; v++) {
          a.v("vmovups", [zmm(v), mem(out, v * 64)], zeroing(k(1 + v)));
          a.v("vmovups", [mem(row, v * 64), zmm(v)]);
        }
      });
    }
    a.bind(known);
  }
  a.mov(local("addend"), place);
  a.mov(local("addendStride"), stride);
  for (const [waiting, next] of [
    ["rowScales", "aPieceScales"],
    ["columnScales", "bPieceScales"],
  ] as const) {
    a.mov(other, local(next));
    a.mov(local(waiting), other);
  }
  a.add(local("aPieceScales"), TILE_BLOCK * 4);
  loadSlot(a, other, TILES_AT.bPieceScaleBytes);
  a.add(local("bPieceScales"), other);
  a.mov(other, local("columnsLeft"));
  a.mov(local("columnsOfPiece"), other);
}

/** Before the first piece: what is promoted then goes where it disturbs nothing. */
export function emitNothingWaits(frame: Frame): void {
  const { a, local } = frame;
  const negativeZero = zmm(0);
  emitPromotedBuffer(a, r.r8);
  a.mov(local("promoted"), r.r8);
  a.add(r.r8, TILE_SUMS_BYTES);
  a.mov(local("addend"), r.r8);
  // A multiply-add to −0 is a multiplication, to the sign of zero.
  a.mov(r.rax, 2 ** 31);
  a.v("vpbroadcastd r32", [negativeZero, r.rax]);
  for (let v = 0; v < 2; v++) a.v("vmovups", [mem(r.r8, v * 64), negativeZero]);
  a.mov(local("addendStride"), 0);
  a.mov(local("promotedStride"), PANEL_ROW_BYTES);
  setFromSlot(frame, "rowScales", "aScales");
  setFromSlot(frame, "columnScales", "bScales");
  a.mov(local("columnsOfPiece"), 0);
}

/** Calls `emit` for each row of a block of few rows: its place in the buffer and in the output. */
function emitEachRowOf({ a, local }: Frame, emit: (row: Gp, out: Gp) => void): void {
  const [row, out] = [r.rsi, r.rdx];
  a.mov(r.rax, local("columnsLeft"));
  a.mov(r.rsi, r.rax);
  emitLaneMasks(a, r.rsi, 2);
  emitPromotedBuffer(a, row);
  a.mov(out, local("tile"));
  a.mov(r.rax, local("rowsLeft"));
  a.countdown(r.rax, 1, () => {
    emit(row, out);
    a.add(row, PANEL_ROW_BYTES);
    a.add(out, AT.outStride);
  });
}

/** Registers and masks of the piece that waits; its sums are at `TILE_AT.buffer`. */
function emitBeginPromotion({ a, local }: Frame): void {
  a.mov(r.rsi, local("columnsOfPiece"));
  emitLaneMasks(a, r.rsi, 2);
  for (const name of ["addend", "addendStride", "promoted", "promotedStride"] as const) {
    a.mov(AT[name], local(name));
  }
  a.mov(AT.rowScales, local("columnScales"));
  emitEither(a, slotOf("sharesColumnScales"), (isShared) => {
    for (const [v, scales] of COLUMN_SCALES.entries()) {
      if (isShared) a.v("vbroadcastss", [scales, mem(AT.rowScales)]);
      else a.v("vmovups", [scales, mem(AT.rowScales, v * 64)], zeroing(k(1 + v)));
    }
  });
  a.mov(AT.rowScales, local("rowScales"));
  loadSlot(a, TILE_AT.buffer, TILES_AT.buffer);
}

/** Promotes the next `rows` rows of sums. */
function emitPromotion(a: X64, rows: number): void {
  const { buffer: from } = TILE_AT;
  const rowScale = zmm(26);
  for (let row = 0; row < rows; row++) {
    a.v("vbroadcastss", [rowScale, mem(AT.rowScales, row * 4)]);
    for (const [v, columnScale] of COLUMN_SCALES.entries()) {
      const [scale, sum, exists] = [zmm(v), zmm(2 + v), k(1 + v)];
      a.v("vmulps", [scale, rowScale, columnScale]);
      a.v("vmovups", [sum, mem(AT.addend, v * 64)], zeroing(exists));
      a.v("vfmadd231ps", [sum, scale, mem(from, row * PANEL_ROW_BYTES + v * 64)]);
      a.v("vmovups", [mem(AT.promoted, v * 64), sum], merging(exists));
    }
    a.add(AT.addend, AT.addendStride);
    a.add(AT.promoted, AT.promotedStride);
  }
  a.add(AT.rowScales, rows * 4);
  a.add(from, rows * PANEL_ROW_BYTES);
}

/** Promotes what a piece's steps have left. */
function emitRestOfPromotion({ a }: Frame): void {
  const [next, done] = [a.label(), a.label()];
  a.bind(next);
  loadSlot(a, r.rax, TILES_AT.buffer);
  a.add(r.rax, TILE_SUMS_BYTES);
  a.cmp(TILE_AT.buffer, r.rax);
  a.j("ge", done);
  emitPromotion(a, ROWS_BESIDE);
  a.jmp(next);
  a.bind(done);
}

/** Promotes the piece that waits, beside nothing. */
export function emitPromoteAll(frame: Frame): void {
  emitBeginPromotion(frame);
  emitRestOfPromotion(frame);
}
