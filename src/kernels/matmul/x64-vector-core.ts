/**
 * @file The vector core of the x64 matrix products: f32 by `vfmadd231ps`, bf16 pairs by
 * `vdpbf16ps`.
 *
 *     out[m, n] (=|+=) Σ_d A[m, d] · B[d, n]       over one block of depth, both operands packed
 *
 * A tile of the output stays in registers: MR rows (12 or 14) of NV vectors (2). For each word of
 * depth it reads NV vectors of B and broadcasts MR words of A. Rows left over take tiles of 8, 4, 2
 * and 1 rows, a narrow last panel takes one vector: the order in which an element is summed is the
 * same in all of them, one multiply-add a word of depth, from zero, upwards.
 *
 * `vdpbf16ps` rounds to nearest even, treats subnormal inputs as zero and flushes subnormal
 * results, whatever MXCSR says; NaN and infinities propagate. `vfmadd231ps` is IEEE 754.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type Mask,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  zmm,
} from "../../codegen/x64/operands.ts";
import { emitClear, emitLaneMasks, type X64InputDType } from "./x64-pack.ts";

/** Rows of a full tile that leaves registers for work on its sums, and columns of every one. */
export const TILE_ROWS = 12;
export const TILE_COLUMNS = 32;
/** Rows of one whose sums are only stored: it loads less for each multiply-add. */
export const TALL_TILE_ROWS = 14;
const TILE_VECTORS = TILE_COLUMNS / 16;
/** Tiles for the rows left over. */
const REST_ROWS = [8, 4, 2, 1] as const;
/** Words of depth in one turn of the loop: with four, tall tiles are 3% slower on Intel. */
const UNROLL = { usual: 4, tall: 2 } as const;
/** Depth, in words, from which a tile's place in the output is fetched before its sums. */
const FETCHED_FROM_WORDS = 32;

/** Where the core finds its arguments; it clobbers every other register but rdi. */
export const CORE_ARGUMENTS: Readonly<
  Record<"aPanels" | "bPanels" | "out" | "outStrideBytes" | "rows" | "columns" | "words", Gp>
> = {
  aPanels: r.r9,
  bPanels: r.r10,
  out: r.r11,
  outStrideBytes: r.r12,
  rows: r.r13,
  columns: r.rcx,
  words: r.r8,
};

/** Where a tile finds its operands: the panels from its first row and column on, and its output. */
export const TILE_ARGUMENTS: Readonly<Record<"a" | "b" | "wordsLeft" | "outRow", Gp>> = {
  a: r.rsi,
  b: r.rdx,
  wordsLeft: r.rax,
  outRow: r.rbp,
};

const AT = { ...TILE_ARGUMENTS, columnsLeft: r.r14, tile: r.r15, bPanel: r.rbx } as const;

/** A tile of the output: its sums are in zmm0 and up, row by row. */
export interface Tile {
  readonly rows: number;
  readonly vectors: number;
  /** Rows of the panel of A that it reads. */
  readonly panelRows: number;
}

/** What a core does with tiles, and what it must know of the way through the panels. */
export interface TileWork {
  /** Rows of a full tile, and of a panel of A. */
  readonly panelRows: number;
  /**
   * Computes one tile and leaves `outRow` behind it; it may clobber wordsLeft, a and b. Columns
   * that exist are in k1 and up.
   */
  readonly emitTile: (tile: Tile) => void;
  /** After the last panel of B beside a panel of A. */
  readonly afterRows?: () => void;
  /** After each panel of B. */
  readonly afterColumns?: () => void;
}

/** One word of depth: `step` words after the ones that a and b point to. */
function emitStep(a: X64, tile: Tile, step: number, dtype: X64InputDType): void {
  const { rows, vectors, panelRows } = tile;
  const fma = dtype === "f32" ? "vfmadd231ps" : "vdpbf16ps";
  const firstB = rows * vectors;
  const firstA = firstB + vectors;
  for (let v = 0; v < vectors; v++) {
    a.v("vmovups", [zmm(firstB + v), mem(AT.b, (step * TILE_VECTORS + v) * 64)]);
  }
  for (let i = 0; i < rows; i++) {
    const x = zmm(firstA + (i % (32 - firstA)));
    a.v("vbroadcastss", [x, mem(AT.a, (step * panelRows + i) * 4)]);
    for (let v = 0; v < vectors; v++) a.v(fma, [zmm(i * vectors + v), zmm(firstB + v), x]);
  }
}

/**
 * The tile's sums over `wordsLeft` words of the panels at `a` and `b`, which it leaves behind them.
 */
export function emitSums(a: X64, tile: Tile, dtype: X64InputDType): void {
  emitClear(a, tile.rows * tile.vectors);
  const advance = (steps: number): void => {
    a.add(AT.a, steps * tile.panelRows * 4);
    a.add(AT.b, steps * TILE_COLUMNS * 4);
  };
  const unroll = tile.panelRows > TILE_ROWS ? UNROLL.tall : UNROLL.usual;
  a.sub(AT.wordsLeft, unroll - 1);
  a.countdown(AT.wordsLeft, unroll, () => {
    for (let step = 0; step < unroll; step++) emitStep(a, tile, step, dtype);
    advance(unroll);
  });
  a.add(AT.wordsLeft, unroll - 1);
  a.countdown(AT.wordsLeft, 1, () => {
    emitStep(a, tile, 0, dtype);
    advance(1);
  });
}

/** One vector of a tile: its sum's register, its place in the output, its existing columns. */
export interface TileVector {
  readonly row: number;
  readonly vector: number;
  readonly sum: Vector;
  readonly at: Memory;
  readonly mask: Mask;
}

/** Walk the output rows from `outRow` on, which is left behind the tile. */
export function emitEachVector(
  a: X64,
  { rows, vectors }: Tile,
  emit: (place: TileVector) => void,
): void {
  const { outRow } = TILE_ARGUMENTS;
  const { outStrideBytes } = CORE_ARGUMENTS;
  for (let row = 0; row < rows; row++) {
    for (let vector = 0; vector < vectors; vector++) {
      const isEven = row % 2 === 0;
      const at = isEven ? mem(outRow, vector * 64) : mem(outRow, vector * 64, outStrideBytes, 1);
      emit({ row, vector, sum: zmm(row * vectors + vector), at, mask: merging(k(1 + vector)) });
    }
    if (row % 2 === 1) a.lea(outRow, mem(outRow, 0, outStrideBytes, 2));
  }
  if (rows % 2 === 1) a.add(outRow, outStrideBytes);
}

/** Write the sums to the output, or add them if the slot `accumulate` is not 0. */
function emitStore(a: X64, tile: Tile, accumulate: Memory): void {
  emitEither(a, accumulate, (adds) =>
    emitEachVector(a, tile, ({ sum, at, mask }) => {
      if (adds) a.v("vaddps", [sum, sum, at], mask);
      a.v("vmovups", [at, sum], mask);
    }),
  );
}

/** Two versions of some code: the first runs where `condition` is not 0. */
export function emitEither(a: X64, condition: Memory, emit: (isSet: boolean) => void): void {
  const clear = a.label();
  const done = a.label();
  a.cmp(condition, 0);
  a.j("e", clear);
  emit(true);
  a.jmp(done);
  a.bind(clear);
  emit(false);
  a.bind(done);
}

/**
 * Ask for the tile's lines of the output before its sums are taken, which are written or added to
 * when they are done: the wait for memory then passes beside the arithmetic. Shallow sums leave it
 * no time, and are those of attention, whose outputs are in cache. Clobbers rax.
 */
function emitFetchOutput(a: X64, { rows, vectors }: Tile): void {
  const { outStrideBytes, words } = CORE_ARGUMENTS;
  const done = a.label();
  a.cmp(words, FETCHED_FROM_WORDS);
  a.j("l", done);
  a.mov(r.rax, AT.outRow);
  for (let row = 0; row < rows; row++) {
    for (let vector = 0; vector < vectors; vector++) a.prefetch(mem(r.rax, vector * 64));
    if (row + 1 < rows) a.add(r.rax, outStrideBytes);
  }
  a.bind(done);
}

/** All rows of one panel of A against one panel of B, in tiles of `vectors` vectors. */
function emitPanelPair(a: X64, vectors: number, { panelRows, emitTile }: TileWork): void {
  const done = a.label();
  const rest = a.label();
  const emit = (rows: number): void => {
    const tile = { rows, vectors, panelRows };
    emitFetchOutput(a, tile);
    a.mov(AT.b, AT.bPanel);
    emitTile(tile);
  };
  a.mov(AT.outRow, AT.tile);
  a.mov(AT.a, CORE_ARGUMENTS.aPanels);
  a.cmp(CORE_ARGUMENTS.rows, panelRows);
  a.j("l", rest);
  emit(panelRows);
  a.jmp(done);
  a.bind(rest);
  // `rows` has the bits of the rest: 8, 4, 2, 1. Each tile starts where the one before it ends.
  let first = 0;
  for (const rows of REST_ROWS) {
    const skip = a.label();
    a.mov(r.rax, CORE_ARGUMENTS.rows);
    a.and(r.rax, rows);
    a.j("e", skip);
    // The rows already done are the higher bits of the rest.
    a.mov(AT.a, CORE_ARGUMENTS.rows);
    a.and(AT.a, first);
    a.lea(AT.a, mem(CORE_ARGUMENTS.aPanels, 0, AT.a, 4));
    emit(rows);
    a.bind(skip);
    first |= rows;
  }
  a.bind(done);
}

/** The product of packed blocks. `accumulate` is a slot: 0 overwrites the output. */
export function emitVectorCore(
  a: X64,
  panelRows: number,
  dtype: X64InputDType,
  accumulate: Memory,
): void {
  const emitTile = (tile: Tile): void => {
    a.mov(AT.wordsLeft, CORE_ARGUMENTS.words);
    emitSums(a, tile, dtype);
    emitStore(a, tile, accumulate);
  };
  emitPanels(a, { panelRows, emitTile });
}

/** All panels of A against all panels of B, tile by tile. */
export function emitPanels(a: X64, work: TileWork): void {
  const { aPanels, bPanels, out, outStrideBytes, rows, columns, words } = CORE_ARGUMENTS;
  a.countdown(rows, work.panelRows, () => {
    a.mov(AT.bPanel, bPanels);
    a.mov(AT.tile, out);
    a.mov(AT.columnsLeft, columns);
    a.countdown(AT.columnsLeft, TILE_COLUMNS, () => {
      const narrow = a.label();
      const done = a.label();
      emitLaneMasks(a, AT.columnsLeft, TILE_VECTORS);
      a.cmp(AT.columnsLeft, 16);
      a.j("le", narrow);
      emitPanelPair(a, TILE_VECTORS, work);
      a.jmp(done);
      a.bind(narrow);
      emitPanelPair(a, 1, work);
      a.bind(done);
      a.imul(r.rax, words, TILE_COLUMNS * 4);
      a.add(AT.bPanel, r.rax);
      a.add(AT.tile, TILE_COLUMNS * 4);
      work.afterColumns?.();
    });
    a.imul(r.rax, words, work.panelRows * 4);
    a.add(aPanels, r.rax);
    a.imul(r.rax, outStrideBytes, work.panelRows);
    a.add(out, r.rax);
    work.afterRows?.();
  });
}
