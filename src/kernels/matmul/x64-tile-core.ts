/**
 * @file The AMX core of the x64 matrix products: bf16 pairs by `tdpbf16ps`, 16×16 results at a
 * time.
 *
 *     out[m, n] (=|+=) Σ_d A[m, d] · B[d, n]       over one block of depth, both operands packed
 *
 * Four tiles hold 32×32 sums, two hold rows of A, two hold columns of B. Panels are padded with
 * zeros to 16 words of depth, so that every tile is whole. The sums leave through a 4 KiB buffer,
 * from which existing rows and columns are written to the output under masks. Each element is
 * summed alike wherever it stands: of 16 words of depth the even and the odd elements apart, from
 * zero upwards, then the two sums together, then that to the sum so far.
 *
 * `tdpbf16ps` rounds to nearest even, treats subnormal inputs as zero and flushes subnormal
 * results; NaN and infinities propagate. Tiles are configured first and released last: nothing else
 * in the process touches them, and the operating system saves them only while they are in use.
 *
 * Source: SDM volume 1, chapter 18 (AMX); volume 2, TDPBF16PS.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { type Gp, k, type Memory, mem, merging, r, tmm, zmm } from "../../codegen/x64/operands.ts";
import { emitLaneMasks } from "./x64-pack.ts";
import { CORE_ARGUMENTS, emitEither } from "./x64-vector-core.ts";

/** The tile instructions, as the assembler has them; a test emits others that mean the same. */
export type TileUnit = Pick<
  X64,
  "ldtilecfg" | "tilerelease" | "tilezero" | "tileloadd" | "tilestored" | "tdpbf16ps"
>;

/** Rows and columns of the sums that the tiles hold together. */
export const TILE_BLOCK = 32;
export const TILE_BUFFER_BYTES = 4096;
const TILE_BYTES = 1024;
/** Bytes of a row of B's panels and of the buffer. */
export const PANEL_ROW_BYTES: number = TILE_BLOCK * 4;

/**
 * Local variables of the kernel that this core uses: the buffer's address, a place in rows that
 * will be wanted, then 64 bytes.
 */
export const TILE_CORE_LOCALS = 10;
export const LOCAL_BUFFER = 0;
const LOCAL_NEXT_LINE = 1;
const LOCAL_CONFIGURATION = 2;

/**
 * Registers beside `CORE_ARGUMENTS`. A block of sums finds the panels of A and B from its depth on
 * at `a` and `b`, and its place in the output at `tile`.
 */
export const TILE_AT: Readonly<
  Record<"a" | "b" | "wordsLeft" | "tile" | "buffer" | "aStride" | "bStride", Gp>
> = {
  a: r.rbp,
  b: r.rbx,
  wordsLeft: r.rax,
  tile: r.rsi,
  buffer: r.rdx,
  aStride: r.r14,
  bStride: r.r15,
};
const AT = TILE_AT;

/** Words of 64 bits that a configuration of tiles takes. */
export const TILE_CONFIGURATION_WORDS = 8;

/**
 * Palette 1, eight tiles of 16 rows (SDM volume 1, section 18.3), by way of 64 bytes of memory at
 * `configuration`; clobbers rax. Rows have 64 bytes, or `otherBytes` in tiles other than 4 and 5.
 */
export function emitTileConfiguration(
  a: X64,
  tiles: TileUnit,
  configuration: Memory,
  otherBytes = 64,
): void {
  const others = otherBytes * 0x10001;
  const words = [1, 0, 0, 0, others, others, 0x400040, others];
  words.push(0, 0, 0, 0, 0x10101010, 0x10101010, 0, 0);
  for (const [index, word] of words.entries()) {
    const { base, displacement } = configuration;
    a.mov(r.rax, word);
    a.mov32(mem(base, displacement + 4 * index), r.rax);
  }
  tiles.ldtilecfg(configuration);
}

/**
 * Sums of 16 or 32 rows by 32 columns over `wordsLeft` words of the panels at `a` and `b`, which it
 * leaves behind them, into the buffer.
 */
export function emitTileSums(a: X64, tiles: TileUnit, numRowTiles: 1 | 2): void {
  emitSums(a, tiles, numRowTiles, { second: mem(AT.a, TILE_BYTES), step: 2 * TILE_BYTES });
  emitStoreTiles(tiles, numRowTiles);
}

/**
 * Zero that is added to zero beside each 16 words of depth. Vector arithmetic that rests for about
 * 2600 cycles takes about 1000 to come back, and stores of tiles wait for it: a block of 32×32 sums
 * takes 3190 cycles with it and 4130 without at 1024 of depth, both operands in the second-level
 * cache (docs/log.md).
 */
const IDLE_SUM = zmm(31);

/** How sums find rows 16 to 31 of A, and the bytes from 16 words of depth to the next. */
interface TileWalk {
  readonly second: Memory;
  readonly step: number;
}

function emitSums(a: X64, tiles: TileUnit, numRowTiles: 1 | 2, { second, step }: TileWalk): void {
  const [a0, a1, b0, b1] = [tmm(4), tmm(5), tmm(6), tmm(7)];
  for (let t = 0; t < 2 * numRowTiles; t++) tiles.tilezero(tmm(t));
  a.v("vpxord", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
  a.countdown(AT.wordsLeft, 16, () => {
    tiles.tileloadd(a0, mem(AT.a, 0, AT.aStride, 1));
    tiles.tileloadd(b0, mem(AT.b, 0, AT.bStride, 1));
    tiles.tdpbf16ps(tmm(0), a0, b0);
    tiles.tileloadd(b1, mem(AT.b, 64, AT.bStride, 1));
    tiles.tdpbf16ps(tmm(1), a0, b1);
    if (numRowTiles === 2) {
      tiles.tileloadd(a1, mem(second.base, second.displacement, AT.aStride, 1));
      tiles.tdpbf16ps(tmm(2), a1, b0);
      tiles.tdpbf16ps(tmm(3), a1, b1);
    }
    a.v("vaddps", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
    a.add(AT.a, step);
    if (second.base !== AT.a) a.add(second.base, step);
    a.add(AT.b, 16 * PANEL_ROW_BYTES);
  });
}

/** The sums' tiles into the buffer. */
function emitStoreTiles(tiles: TileUnit, numRowTiles: 1 | 2): void {
  for (let t = 0; t < 2 * numRowTiles; t++) {
    const at = Math.floor(t / 2) * 16 * PANEL_ROW_BYTES + (t % 2) * 64;
    tiles.tilestored(mem(AT.buffer, at, AT.bStride, 1), tmm(t));
  }
}

/** rowsLeft = the rows of a block that exist, in rax. */
export function emitRowsLeft(a: X64): typeof r.rax {
  const { rows } = CORE_ARGUMENTS;
  a.mov(r.rax, TILE_BLOCK);
  a.cmp(rows, r.rax);
  a.cmov("l", r.rax, rows);
  return r.rax;
}

/** Existing rows and columns of the buffer to the output at `tile`. Masks in k1, k2. */
function emitWriteOut(a: X64, accumulate: Memory): void {
  const [from, to] = [AT.buffer, AT.a];
  const { outStrideBytes } = CORE_ARGUMENTS;
  const rowsLeft = emitRowsLeft(a);
  a.mov(to, AT.tile);
  emitEither(a, accumulate, (adds) =>
    a.countdown(rowsLeft, 1, () => {
      for (let v = 0; v < 2; v++) {
        const mask = merging(k(1 + v));
        a.v("vmovups", [zmm(v), mem(from, v * 64)]);
        if (adds) a.v("vaddps", [zmm(v), zmm(v), mem(to, v * 64)], mask);
        a.v("vmovups", [mem(to, v * 64), zmm(v)], mask);
      }
      a.add(from, PANEL_ROW_BYTES);
      a.add(to, outStrideBytes);
    }),
  );
}

/** What a core over tiles finds in the kernel around it. */
export interface TileFrame {
  readonly tiles: TileUnit;
  /** Local variables; the first `TILE_CORE_LOCALS` are taken. */
  readonly local: (index: number) => Memory;
  /** The slots of these names: 0 overwrites; columns of the output. */
  readonly accumulate: Memory;
  readonly columns: Memory;
  /** Register with the address of TILE_BUFFER_BYTES of scratch. */
  readonly buffer: typeof r.rax;
}

/** What a core does with a block of 32×32 results, and after each on the way. */
export interface TileWork {
  /** The bytes between rows of A where it stands; left out where A is packed. */
  readonly strideOfA?: Memory;
  /** Before each panel of rows; may clobber rax. */
  readonly beforeRows?: () => void;
  /**
   * Computes a block of one or two tiles of rows; `buffer` has its address, k1 and k2 the columns
   * that exist. Leaves `b` behind the panel; may clobber rax, `a` and `buffer`.
   */
  readonly emitBlock: (numRowTiles: 1 | 2) => void;
  readonly afterColumns?: () => void;
  readonly afterRows?: () => void;
}

/** All panels of A against all panels of B, block by block. */
export function emitTilePanels(a: X64, frame: TileFrame, work: TileWork): void {
  const { tiles, local, columns, buffer } = frame;
  const { aPanels, bPanels, out, outStrideBytes, rows, words } = CORE_ARGUMENTS;
  const columnsLeft = CORE_ARGUMENTS.columns;
  a.mov(local(LOCAL_BUFFER), buffer);
  emitTileConfiguration(a, tiles, local(LOCAL_CONFIGURATION));
  if (work.strideOfA === undefined) a.mov(AT.aStride, 64);
  else a.v("vcvttsd2si", [AT.aStride, work.strideOfA]);
  a.mov(AT.bStride, PANEL_ROW_BYTES);
  a.countdown(rows, TILE_BLOCK, () => {
    work.beforeRows?.();
    a.v("vcvttsd2si", [columnsLeft, columns]);
    a.mov(AT.b, bPanels);
    a.mov(AT.tile, out);
    a.countdown(columnsLeft, TILE_BLOCK, () => {
      const oneTile = a.label();
      const done = a.label();
      emitLaneMasks(a, columnsLeft, 2);
      a.mov(AT.buffer, local(LOCAL_BUFFER));
      a.cmp(rows, 16);
      a.j("le", oneTile);
      work.emitBlock(2);
      a.jmp(done);
      a.bind(oneTile);
      work.emitBlock(1);
      a.bind(done);
      a.add(AT.tile, PANEL_ROW_BYTES);
      work.afterColumns?.();
    });
    if (work.strideOfA === undefined) a.imul(r.rax, words, TILE_BLOCK * 4);
    else a.imul(r.rax, AT.aStride, TILE_BLOCK);
    a.add(aPanels, r.rax);
    a.imul(r.rax, outStrideBytes, TILE_BLOCK);
    a.add(out, r.rax);
    work.afterRows?.();
  });
  tiles.tilerelease();
}

/** The product of packed blocks. */
export function emitTileCore(a: X64, frame: TileFrame): void {
  emitTilePanels(a, frame, {
    emitBlock: (numRowTiles) => {
      a.mov(AT.a, CORE_ARGUMENTS.aPanels);
      a.mov(AT.wordsLeft, CORE_ARGUMENTS.words);
      emitTileSums(a, frame.tiles, numRowTiles);
      emitWriteOut(a, frame.accumulate);
    },
  });
}

/**
 * The same with A where it stands: rows of bf16 are what its tiles hold. `aPanels` has the address
 * of the first; rows are a multiple of `TILE_BLOCK`, words of 16. While a panel of B is multiplied,
 * a line of each of the next 32 rows is asked for: rows stand apart, and the processor does not
 * follow them by itself.
 */
export function emitRowsCore(a: X64, frame: TileFrame, aStrideBytes: Memory): void {
  const { tiles, local, accumulate } = frame;
  const next = local(LOCAL_NEXT_LINE);
  const second = AT.buffer;
  const toNextRows = (): void => {
    a.imul(r.rax, AT.aStride, TILE_BLOCK);
    a.add(r.rax, CORE_ARGUMENTS.aPanels);
    a.mov(next, r.rax);
  };
  emitTilePanels(a, frame, {
    strideOfA: aStrideBytes,
    beforeRows: toNextRows,
    emitBlock: (numRowTiles) => {
      if (numRowTiles === 1) return;
      emitAskForRows(a, next);
      a.mov(AT.a, CORE_ARGUMENTS.aPanels);
      a.imul(second, AT.aStride, 16);
      a.add(second, AT.a);
      a.mov(AT.wordsLeft, CORE_ARGUMENTS.words);
      emitSums(a, tiles, 2, { second: mem(second), step: 64 });
      a.mov(AT.buffer, local(LOCAL_BUFFER));
      emitStoreTiles(tiles, 2);
      emitWriteOut(a, accumulate);
    },
  });
}

/** Asks for one line of each of the 32 rows from `next` on, which moves on by a line. */
function emitAskForRows(a: X64, next: Memory): void {
  a.mov(AT.a, next);
  for (let row = 0; row < TILE_BLOCK; row++) {
    a.prefetch(mem(AT.a), 1);
    if (row + 1 < TILE_BLOCK) a.add(AT.a, AT.aStride);
  }
  a.add(next, 64);
}
