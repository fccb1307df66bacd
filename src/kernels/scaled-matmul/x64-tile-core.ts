/**
 * @file The AMX core of scaled products: the blocks of matmul/x64-tile-core.ts, summed piece by
 * piece and promoted.
 *
 *     out[m, n] (=|+=) Σ_p fma(Σ_{d in piece p} A[m, d] · B[d, n],  scaleA[m, p] · scaleB[p, n])
 *
 * Operands are packed as bf16, which holds every FP8 value exactly. A piece of 32×32 results is
 * summed in tiles and leaves through the buffer; beside the sums of the next piece it is promoted
 * into a second buffer, from which the block goes to the output when all pieces have passed. Pieces
 * are whole tiles, 32 of depth or a multiple; others are packed one by one.
 *
 *   scales    aScales[panel][piece][32 rows]   bScales[panel][piece][32 columns]      f32
 */
import { divExact } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Memory, mem, merging, r, zeroing, zmm } from "../../codegen/x64/operands.ts";
import { BLOCK_AT } from "../matmul/x64-block.ts";
import type { X64Core } from "../matmul/x64-core.ts";
import {
  emitAskForRows,
  emitClearTiles,
  emitColumnMasks,
  emitEachRow,
  emitSteps,
  emitStoreTiles,
  emitTilePanels,
  LOCAL_BUFFER,
  LOCAL_WORDS,
  PANEL_ROW_BYTES,
  PANEL_WALK,
  STEP_WORDS,
  TILE_AT,
  TILE_BLOCK,
  TILE_CORE_LOCALS,
  TILE_SUMS_BYTES,
  type TileFrame,
  type TileUnit,
} from "../matmul/x64-tile-core.ts";
import { CORE_ARGUMENTS, emitEither } from "../matmul/x64-vector-core.ts";
import type { ProductFormat } from "./contract.ts";

/** Local variables behind those of the tiles. */
const LOCALS = [
  "aScales",
  "bScales",
  "aPieceScales",
  "bPieceScales",
  "pieceWords",
  "wordsLeft",
  "restOfPiece",
] as const;
type LocalName = (typeof LOCALS)[number];
type LocalAt = (name: LocalName) => Memory;

/** The core for two formats, with the tile instructions of `unit` (null: the processor's). */
export function scaledTileCore(
  a: ProductFormat,
  b: ProductFormat,
  unit: ((a: X64) => TileUnit) | null,
): X64Core {
  const format = { width: TILE_BLOCK, dtype: "bf16", depthUnit: 16 } as const;
  return {
    name: `amxBf16.${a}.${b}`,
    aFormat: { ...format, source: a, layout: "tiles" },
    bFormat: { ...format, source: b, layout: "words" },
    depthBlockWords: 1024,
    maxRows: 1024,
    sliceBytes: 2 ** 20,
    numLocals: TILE_CORE_LOCALS + LOCALS.length,
    emit: (assembler, { slotAt, ...frame }) => {
      const tiles = unit === null ? assembler : unit(assembler);
      const [accumulate, columns] = [slotAt("accumulate"), slotAt("columns")];
      emitScaledTileCore(assembler, { ...frame, tiles, accumulate, columns });
    },
  };
}

function emitScaledTileCore(a: X64, frame: TileFrame): void {
  const at: LocalAt = (name) => frame.local(TILE_CORE_LOCALS + LOCALS.indexOf(name));
  const setFromSlot = (name: "aScales" | "bScales" | "pieceWords"): void => {
    loadSlot(a, r.rax, BLOCK_AT[name]);
    a.mov(at(name), r.rax);
  };
  const nextPanel = (name: "aScales" | "bScales"): void => {
    loadSlot(a, r.rax, BLOCK_AT[`${name}PanelBytes`]);
    a.add(at(name), r.rax);
  };
  for (const name of ["aScales", "bScales", "pieceWords"] as const) setFromSlot(name);
  emitTilePanels(a, frame, {
    emitBlock: (numRowTiles) => emitBlock(a, frame, numRowTiles, at),
    afterColumns: () => nextPanel("bScales"),
    afterRows: () => {
      nextPanel("aScales");
      setFromSlot("bScales");
    },
  });
}

/** Words of depth beside which a block's promotion is spread: a piece of 128, as a rule. */
const SPREAD_WORDS = 64;
const STEPS = divExact(SPREAD_WORDS, STEP_WORDS);

/** A block of the output, piece by piece; a piece is promoted beside the sums of the next one. */
function emitBlock(a: X64, frame: TileFrame, numRowTiles: 1 | 2, at: LocalAt): void {
  const { tiles } = frame;
  const { wordsLeft, buffer, a: aPanel, tile, asked } = TILE_AT;
  const rows = 16 * numRowTiles;
  const toBuffer = (): void => a.mov(buffer, frame.local(LOCAL_BUFFER));
  const steps = (beside?: () => void): void => emitSteps(a, tiles, numRowTiles, PANEL_WALK, beside);
  /** wordsLeft = the words of the next piece, up to `SPREAD_WORDS`; the rest is kept. */
  const nextPiece = (): void => {
    a.mov(wordsLeft, at("pieceWords"));
    a.cmp(wordsLeft, at("wordsLeft"));
    a.cmov("g", wordsLeft, at("wordsLeft"));
    a.sub(at("wordsLeft"), wordsLeft);
    a.mov(at("restOfPiece"), wordsLeft);
    a.sub(at("restOfPiece"), SPREAD_WORDS);
    emitClearTiles(tiles, numRowTiles);
    a.mov(asked, SPREAD_WORDS);
    a.cmp(wordsLeft, asked);
    a.cmov("g", wordsLeft, asked);
  };
  const restOfPiece = (): void => {
    a.mov(wordsLeft, at("restOfPiece"));
    steps();
  };
  const restOfRows = (): void => {
    const [next, done] = [a.label(), a.label()];
    a.bind(next);
    a.mov(r.rax, frame.local(LOCAL_BUFFER));
    a.add(r.rax, rows * PANEL_ROW_BYTES);
    a.cmp(buffer, r.rax);
    a.j("ge", done);
    emitPromotion(a, rows / STEPS);
    a.jmp(next);
    a.bind(done);
  };
  for (const operand of ["a", "b"] as const) {
    a.mov(r.rax, at(`${operand}Scales`));
    a.mov(at(`${operand}PieceScales`), r.rax);
  }
  a.mov(r.rax, frame.local(LOCAL_WORDS));
  a.mov(at("wordsLeft"), r.rax);
  emitColumnMasks(a);
  toBuffer();
  emitLoadSums(a, frame.accumulate);
  a.mov(aPanel, CORE_ARGUMENTS.aPanels);
  nextPiece();
  a.mov(asked, tile);
  steps(() => emitAskForRows(a, rows / STEPS));
  restOfPiece();
  const [another, last] = [a.label(), a.label()];
  a.bind(another);
  toBuffer();
  emitStoreTiles(tiles, numRowTiles);
  a.cmp(at("wordsLeft"), 0);
  a.j("le", last);
  nextPiece();
  emitLoadScales(a, at);
  steps(() => emitPromotion(a, rows / STEPS));
  restOfPiece();
  restOfRows();
  a.jmp(another);
  a.bind(last);
  emitLoadScales(a, at);
  restOfRows();
  toBuffer();
  emitEachRow(a, ({ vector, from, to, exists }) => {
    a.v("vmovups", [vector, promoted(from)]);
    a.v("vmovups", [to, vector], merging(exists));
  });
}

/** Where the promoted sum of the one at `sums` is. */
const promoted = (sums: Memory): Memory => mem(sums.base, sums.displacement + TILE_SUMS_BYTES);

/**
 * The promoted sums become what stands in the output, or, where that is overwritten, −0: a
 * multiply-add to it is a multiplication, to the sign of zero.
 */
function emitLoadSums(a: X64, accumulate: Memory): void {
  const negativeZero = zmm(2);
  a.mov(r.rax, 2 ** 31);
  a.v("vpbroadcastd r32", [negativeZero, r.rax]);
  emitEither(a, accumulate, (adds) =>
    emitEachRow(a, ({ vector, from, to, exists }) => {
      if (adds) a.v("vmovups", [vector, to], zeroing(exists));
      a.v("vmovups", [promoted(from), adds ? vector : negativeZero]);
    }),
  );
}

const COLUMN_SCALES = [zmm(29), zmm(30)] as const;
/** Scales of the rows to promote next; the register is free once the output is asked for. */
const ROW_SCALES = TILE_AT.asked;

/** The scales of the piece to promote next: its columns' in registers, its rows' at hand. */
function emitLoadScales(a: X64, at: LocalAt): void {
  a.mov(ROW_SCALES, at("bPieceScales"));
  for (const [v, scales] of COLUMN_SCALES.entries()) {
    a.v("vmovups", [scales, mem(ROW_SCALES, v * 64)]);
  }
  a.mov(ROW_SCALES, at("aPieceScales"));
  for (const name of ["aPieceScales", "bPieceScales"] as const) a.add(at(name), TILE_BLOCK * 4);
}

/** Adds so many rows of sums at `buffer`, times their scales, to the promoted ones. */
function emitPromotion(a: X64, rows: number): void {
  const { buffer: from } = TILE_AT;
  const rowScale = zmm(26);
  for (let row = 0; row < rows; row++) {
    a.v("vbroadcastss", [rowScale, mem(ROW_SCALES, row * 4)]);
    for (const [v, columnScale] of COLUMN_SCALES.entries()) {
      const [scale, sum] = [zmm(v), zmm(2 + v)];
      const sums = mem(from, row * PANEL_ROW_BYTES + v * 64);
      a.v("vmulps", [scale, rowScale, columnScale]);
      a.v("vmovups", [sum, promoted(sums)]);
      a.v("vfmadd231ps", [sum, scale, sums]);
      a.v("vmovups", [promoted(sums), sum]);
    }
  }
  a.add(ROW_SCALES, rows * 4);
  a.add(from, rows * PANEL_ROW_BYTES);
}
