/**
 * @file The AMX core of scaled products: the blocks of matmul/x64-tile-core.ts, summed piece by
 * piece and promoted.
 *
 *     out[m, n] (=|+=) Σ_p fma(Σ_{d in piece p} A[m, d] · B[d, n],  scaleA[m, p] · scaleB[p, n])
 *
 * Operands are packed as bf16, which holds every FP8 value exactly. A piece of 32×32 results is
 * summed in tiles and leaves through the buffer, from which promotion reads it; the block of the
 * output stays in the first-level cache while the pieces pass. Pieces are whole tiles, 32 of depth
 * or a multiple; others are packed one by one.
 *
 *   scales    aScales[panel][piece][32 rows]   bScales[panel][piece][32 columns]      f32
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { k, type Memory, mem, merging, r, zeroing, zmm } from "../../codegen/x64/operands.ts";
import { BLOCK_AT } from "../matmul/x64-block.ts";
import type { X64Core } from "../matmul/x64-core.ts";
import {
  emitRowsLeft,
  emitTilePanels,
  emitTileSums,
  LOCAL_BUFFER,
  LOCAL_WORDS,
  PANEL_ROW_BYTES,
  TILE_AT,
  TILE_BLOCK,
  TILE_CORE_LOCALS,
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
  "aPanel",
  "adds",
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

/** A block of the output, piece by piece. */
function emitBlock(a: X64, frame: TileFrame, numRowTiles: 1 | 2, at: LocalAt): void {
  const { wordsLeft, buffer, a: aPanel } = TILE_AT;
  for (const operand of ["a", "b"] as const) {
    a.mov(r.rax, at(`${operand}Scales`));
    a.mov(at(`${operand}PieceScales`), r.rax);
  }
  a.mov(r.rax, frame.accumulate);
  a.mov(at("adds"), r.rax);
  a.mov(r.rax, frame.local(LOCAL_WORDS));
  a.mov(at("wordsLeft"), r.rax);
  a.mov(aPanel, CORE_ARGUMENTS.aPanels);
  const nextPiece = a.label();
  a.bind(nextPiece);
  a.mov(wordsLeft, at("pieceWords"));
  a.cmp(wordsLeft, at("wordsLeft"));
  a.cmov("g", wordsLeft, at("wordsLeft"));
  a.sub(at("wordsLeft"), wordsLeft);
  emitTileSums(a, frame.tiles, numRowTiles);
  a.mov(at("aPanel"), aPanel);
  emitPromotion(a, at);
  a.mov(aPanel, at("aPanel"));
  a.mov(buffer, frame.local(LOCAL_BUFFER));
  a.mov(r.rax, 1);
  a.mov(at("adds"), r.rax);
  a.add(at("aPieceScales"), TILE_BLOCK * 4);
  a.add(at("bPieceScales"), TILE_BLOCK * 4);
  a.cmp(at("wordsLeft"), 0);
  a.j("g", nextPiece);
}

/**
 * The piece's sums in the buffer, times their scales, into the output. Clobbers rax, `a`, the
 * buffer's register and `asked`.
 */
function emitPromotion(a: X64, at: LocalAt): void {
  const { buffer: from, a: to, tile, asked: rowScales } = TILE_AT;
  const { outStrideBytes } = CORE_ARGUMENTS;
  const columnScale = [zmm(24), zmm(25)] as const;
  const rowScale = zmm(26);
  a.mov(r.rax, at("bPieceScales"));
  for (let v = 0; v < 2; v++) a.v("vmovups", [columnScale[v]!, mem(r.rax, v * 64)]);
  a.mov(rowScales, at("aPieceScales"));
  a.mov(to, tile);
  const rowsLeft = emitRowsLeft(a);
  emitEither(a, at("adds"), (adds) =>
    a.countdown(rowsLeft, 1, () => {
      a.v("vbroadcastss", [rowScale, mem(rowScales)]);
      for (let v = 0; v < 2; v++) {
        const [scale, sum, exists] = [zmm(v), zmm(2 + v), k(1 + v)];
        a.v("vmulps", [scale, rowScale, columnScale[v]!]);
        if (adds) {
          a.v("vmovups", [sum, mem(to, v * 64)], zeroing(exists));
          a.v("vfmadd231ps", [sum, scale, mem(from, v * 64)]);
        } else a.v("vmulps", [sum, scale, mem(from, v * 64)]);
        a.v("vmovups", [mem(to, v * 64), sum], merging(exists));
      }
      a.add(from, PANEL_ROW_BYTES);
      a.add(to, outStrideBytes);
      a.add(rowScales, 4);
    }),
  );
}
