/**
 * @file The four cores of the x64 matrix products, as values: f32, bf16 on vectors, bf16 on AMX
 * tiles, and bf16 widened to f32 while it is packed, for processors that multiply f32 alone (it
 * keeps what the others flush: subnormal inputs and results).
 *
 * A core says how it wants its operands packed and how deep a block it sums at once, and emits the
 * product of packed blocks. Measured on one core of an AMD Zen 4 (peaks 117 GFLOP/s in f32, 233 in
 * bf16), best samples: 112 and 226 at 512³, 109 and 220 at 1024³. Tiles of 14×32, 8×48, 9×48 and
 * 10×32 are within the noise of 12×32, and so are depth blocks of 256 to 512 words and slices of
 * 128 to 512 columns. Packing B costs 2% at 512³ and 1% at 1024³; what else is lost was not traced.
 * Widening costs nothing that shows: its core is as fast as that of f32. On Intel f32 gains by
 * 14×32, for a reason of its own (docs/log.md): loads cost power, and power costs frequency.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import type { Gp, Memory } from "../../codegen/x64/operands.ts";
import type { BlockSlot } from "./x64-block.ts";
import { emitFewRows, FEW_ROWS, windowColumns } from "./x64-few-rows.ts";
import type { PanelFormat, X64InputDType } from "./x64-pack.ts";
import {
  emitRowsCore,
  emitTileCore,
  TILE_BLOCK,
  TILE_CORE_LOCALS,
  type TileFrame,
  type TileUnit,
} from "./x64-tile-core.ts";
import { emitFewRowsOfTiles, FEW_TILE_ROWS, GROUP_COLUMNS } from "./x64-tile-few-rows.ts";
import { emitVectorCore, TALL_TILE_ROWS, TILE_COLUMNS, TILE_ROWS } from "./x64-vector-core.ts";

/** Slots and local variables that a core may look at. */
export interface CoreFrame {
  readonly slotAt: (name: BlockSlot) => Memory;
  readonly buffer: Gp;
  readonly local: (index: number) => Memory;
}

export interface X64Core {
  readonly name: string;
  readonly aFormat: PanelFormat;
  readonly bFormat: PanelFormat;
  /** Words of depth summed at once: the order of summation depends on K and on this. */
  readonly depthBlockWords: number;
  /** Rows whose packed A is kept at once. */
  readonly maxRows: number;
  /** Of B's panels that are kept at once, so that they stay in the second-level cache. */
  readonly sliceBytes: number;
  readonly numLocals: number;
  /** Operands at `CORE_ARGUMENTS`. */
  emit(a: X64, frame: CoreFrame): void;
  /** The same with A where it stands, if the core can; its depth is contiguous. */
  readonly rows?: RowsCore;
  /** Products of few rows with B where it stands (nt), of the same bits; by rising rows. */
  readonly fewRows?: readonly FewRowsCore[];
}

/** A product of at most `rows` rows, packed at once, with at least so many columns. */
export interface FewRowsCore {
  readonly rows: number;
  readonly leastColumns: number;
  emit(): Uint8Array;
}

/** A core that reads rows of A unpacked; the first one's address is in place of the panels'. */
export interface RowsCore {
  /** Rows come in multiples of it, and elements of depth. */
  readonly unit: number;
  emit(a: X64, frame: CoreFrame): void;
}

/** Both panels stream out of the second-level cache, one pass of A for each slice of B. */
const VECTOR_DEPTH_WORDS = 512;

/** A core that multiplies `dtype`, over operands of `source`. */
function vectorCore(name: string, source: X64InputDType, dtype = source): X64Core {
  const isF32 = dtype === "f32";
  const panelRows = isF32 ? TALL_TILE_ROWS : TILE_ROWS;
  const core: X64Core = {
    name,
    aFormat: { width: panelRows, dtype, source, depthUnit: 1, layout: "words" },
    bFormat: { width: TILE_COLUMNS, dtype, source, depthUnit: 1, layout: "words" },
    depthBlockWords: VECTOR_DEPTH_WORDS,
    // Packed A is larger than the cache anyway; the more rows, the less often B is packed.
    maxRows: isF32 ? 1536 : 768,
    sliceBytes: 2 ** 19,
    numLocals: 0,
    emit: (a, { slotAt }) => emitVectorCore(a, panelRows, dtype, slotAt("accumulate")),
    fewRows: FEW_ROWS.map((rows) => ({
      rows,
      leastColumns: windowColumns(rows),
      emit: () => emitFewRows(core, rows),
    })),
  };
  return core;
}

export const F32_CORE: X64Core = vectorCore("avx512", "f32");
export const BF16_CORE: X64Core = vectorCore("avx512Bf16", "bf16");
export const WIDENING_CORE: X64Core = vectorCore("avx512Widening", "bf16", "f32");

const TILE_DEPTH_WORDS = 1024;

const BF16 = { dtype: "bf16", source: "bf16" } as const;

/**
 * The AMX core, with the tile instructions of `unit` (null: the processor's). Its depth block is
 * long, since sums that stay in tiles are neither stored nor loaded again: shorter blocks, which
 * keep operands in the first-level cache, save less than that takes (docs/log.md). Operands out of
 * the third-level cache are what it waits for, so B's panels are as wide as half of the
 * second-level cache, and A passes seldom.
 */
export function tileCore(unit: ((a: X64) => TileUnit) | null): X64Core {
  const tilesOf = (a: X64): TileUnit => (unit === null ? a : unit(a));
  const tileFrame = (a: X64, { slotAt, ...frame }: CoreFrame): TileFrame => ({
    ...frame,
    tiles: tilesOf(a),
    accumulate: slotAt("accumulate"),
    columns: slotAt("columns"),
  });
  return {
    name: "amxBf16",
    aFormat: { width: TILE_BLOCK, ...BF16, depthUnit: 16, layout: "tiles" },
    bFormat: { width: TILE_BLOCK, ...BF16, depthUnit: 16, layout: "words" },
    depthBlockWords: TILE_DEPTH_WORDS,
    maxRows: 1024,
    sliceBytes: 2 ** 20,
    numLocals: TILE_CORE_LOCALS,
    emit: (a, frame) => emitTileCore(a, tileFrame(a, frame)),
    rows: {
      unit: TILE_BLOCK,
      emit: (a, frame) => emitRowsCore(a, tileFrame(a, frame), frame.slotAt("aStrideBytes")),
    },
    fewRows: FEW_TILE_ROWS.map((rows) => ({
      rows,
      leastColumns: GROUP_COLUMNS,
      emit: () => emitFewRowsOfTiles(tilesOf, rows, TILE_DEPTH_WORDS),
    })),
  };
}

export const AMX_CORE: X64Core = tileCore(null);
