/**
 * @file The vector core of scaled products: the tiles of matmul/x64-vector-core.ts, summed piece by
 * piece and promoted.
 *
 *     out[m, n] (=|+=) Σ_p fma(Σ_{d in piece p} A[m, d] · B[d, n],  scaleA[m, p] · scaleB[p, n])
 *
 * Operands are packed as bf16 (or f32, where the processor does not multiply bf16), which holds
 * every FP8 value exactly. A piece of a tile is summed in registers as an unscaled product is; its
 * sums are then multiplied by the two scales and added to the output's tile, which stays in the
 * first-level cache while the pieces of one cache block pass. For 128 of depth promotion takes 84
 * instructions beside 2432.
 *
 *   scales    aScales[panel][piece][12 rows]   bScales[panel][piece][32 columns]      f32
 *
 * One promotion is one multiplication of scales, then one fused multiply-add; the first piece of a
 * sum that overwrites is multiplied alone.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r, zmm } from "../../codegen/x64/operands.ts";
import { BLOCK_AT } from "../matmul/x64-block.ts";
import type { CoreFrame, X64Core } from "../matmul/x64-core.ts";
import type { X64InputDType } from "../matmul/x64-pack.ts";
import {
  CORE_ARGUMENTS,
  emitEachVector,
  emitEither,
  emitPanels,
  emitSums,
  TILE_ARGUMENTS,
  TILE_COLUMNS,
  TILE_ROWS,
  type Tile,
} from "../matmul/x64-vector-core.ts";
import type { ProductFormat } from "./contract.ts";

/** Local variables: scales of the panels at hand and of the piece at hand, and the tile's state. */
const LOCALS = [
  "aScales",
  "bScales",
  "aPieceScales",
  "bPieceScales",
  "pieceWords",
  "wordsLeft",
  "outRow",
  "adds",
] as const;

/** Deep enough for eight pieces of 128 that pass over a tile of the output at once. */
const DEPTH_WORDS = 512;

/** The core for two formats; `dtype` is what the processor multiplies. */
export function scaledCore(a: ProductFormat, b: ProductFormat, dtype: X64InputDType): X64Core {
  const format = { dtype, depthUnit: 1, layout: "words" } as const;
  return {
    name: `avx512.${a}.${b}.${dtype}`,
    aFormat: { ...format, width: TILE_ROWS, source: a },
    bFormat: { ...format, width: TILE_COLUMNS, source: b },
    depthBlockWords: DEPTH_WORDS,
    maxRows: 768,
    sliceBytes: 2 ** 19,
    numLocals: LOCALS.length,
    emit: (assembler, frame) => emitScaledCore(assembler, dtype, frame),
  };
}

function emitScaledCore(a: X64, dtype: X64InputDType, { slotAt, local }: CoreFrame): void {
  const at = (name: (typeof LOCALS)[number]) => local(LOCALS.indexOf(name));
  const setFromSlot = (name: "aScales" | "bScales" | "pieceWords"): void => {
    loadSlot(a, r.rax, BLOCK_AT[name]);
    a.mov(at(name), r.rax);
  };
  const advance = (name: (typeof LOCALS)[number], bytes: number): void => a.add(at(name), bytes);
  const nextPanel = (name: "aScales" | "bScales"): void => {
    loadSlot(a, r.rax, BLOCK_AT[`${name}PanelBytes`]);
    a.add(at(name), r.rax);
  };
  for (const name of ["aScales", "bScales", "pieceWords"] as const) setFromSlot(name);
  const emitTile = (tile: Tile): void => {
    const { outRow, wordsLeft, a: aPanel } = TILE_ARGUMENTS;
    a.mov(at("outRow"), outRow);
    // The tile's first row stands as far into its panel's scales as into its panel's words.
    a.mov(r.rax, aPanel);
    a.sub(r.rax, CORE_ARGUMENTS.aPanels);
    a.add(r.rax, at("aScales"));
    a.mov(at("aPieceScales"), r.rax);
    a.mov(r.rax, at("bScales"));
    a.mov(at("bPieceScales"), r.rax);
    a.mov(r.rax, slotAt("accumulate"));
    a.mov(at("adds"), r.rax);
    a.mov(at("wordsLeft"), CORE_ARGUMENTS.words);
    const nextPiece = a.label();
    a.bind(nextPiece);
    a.mov(wordsLeft, at("pieceWords"));
    a.cmp(wordsLeft, at("wordsLeft"));
    a.cmov("g", wordsLeft, at("wordsLeft"));
    a.sub(at("wordsLeft"), wordsLeft);
    emitSums(a, tile, dtype);
    a.mov(outRow, at("outRow"));
    emitPromotion(a, tile, at);
    a.mov(r.rax, 1);
    a.mov(at("adds"), r.rax);
    advance("aPieceScales", TILE_ROWS * 4);
    advance("bPieceScales", TILE_COLUMNS * 4);
    a.cmp(at("wordsLeft"), 0);
    a.j("g", nextPiece);
  };
  emitPanels(a, {
    panelRows: TILE_ROWS,
    emitTile,
    afterColumns: () => nextPanel("bScales"),
    afterRows: () => {
      nextPanel("aScales");
      setFromSlot("bScales");
    },
  });
}

/** The piece's sums, times their scales, into the output; leaves `outRow` behind the tile. */
function emitPromotion(
  a: X64,
  tile: Tile,
  at: (name: (typeof LOCALS)[number]) => ReturnType<typeof mem>,
): void {
  const columnScale = [zmm(24), zmm(25)] as const;
  const [rowScale, scale] = [zmm(26), zmm(27)];
  a.mov(r.rax, at("bPieceScales"));
  for (let v = 0; v < tile.vectors; v++) a.v("vmovups", [columnScale[v]!, mem(r.rax, v * 64)]);
  a.mov(r.rax, at("aPieceScales"));
  emitEither(a, at("adds"), (adds) =>
    emitEachVector(a, tile, ({ row, vector, sum, at: out, mask }) => {
      if (vector === 0) a.v("vbroadcastss", [rowScale, mem(r.rax, row * 4)]);
      a.v("vmulps", [scale, rowScale, columnScale[vector]!]);
      if (adds) a.v("vfmadd213ps", [sum, scale, out], mask);
      else a.v("vmulps", [sum, sum, scale]);
      a.v("vmovups", [out, sum], mask);
    }),
  );
}
