/**
 * @file The AMX core of the x64 matrix products: bf16 pairs by `tdpbf16ps`, 16×16 results at a
 * time.
 *
 *     out[m, n] (=|+=) Σ_d A[m, d] · B[d, n]       over one block of depth, both operands packed
 *
 * Four tiles hold 32×32 sums, two hold rows of A, two hold columns of B. Panels are padded with
 * zeros to 16 words of depth, so that every tile is whole. The sums of a whole block are stored
 * where they belong; others leave through a 4 KiB buffer, from which existing rows and columns are
 * written to the output under masks, or added to it. Each element is summed alike wherever it
 * stands: of 16 words of depth the even and the odd elements apart, from zero upwards, then the two
 * sums together, then that to the sum so far.
 *
 * `tdpbf16ps` rounds to nearest even, treats subnormal inputs as zero and flushes subnormal
 * results; NaN and infinities propagate. Tiles are configured first and released last: nothing else
 * in the process touches them, and the operating system saves them only while they are in use.
 *
 * Source: SDM volume 1, chapter 18 (AMX); volume 2, TDPBF16PS.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type MaskRegister,
  type Memory,
  mem,
  merging,
  r,
  tmm,
  type Vector,
  zmm,
} from "../../codegen/x64/operands.ts";
import type { ThreadContext } from "../../device/program.ts";
import { emitLaneMasks } from "./x64-pack.ts";
import { CORE_ARGUMENTS, emitEither } from "./x64-vector-core.ts";

/** The tile instructions, as the assembler has them; a test emits others that mean the same. */
export type TileUnit = Pick<
  X64,
  | "ldtilecfg"
  | "tilerelease"
  | "tilezero"
  | "tileloadd"
  | "tileloaddt1"
  | "tilestored"
  | "tdpbf16ps"
>;

/** null if a kernel in bf16 finds tiles here; otherwise the reason. */
export function tilesRefusal(variant: string, { native }: ThreadContext): string | null {
  if (native === null) return "native code is off or impossible here";
  if (!native.features.amxBf16) return "the processor has no AMX";
  return variant === "bf16" ? null : `tiles hold bf16, not ${variant}`;
}

/** Rows and columns of the sums that the tiles hold together. */
export const TILE_BLOCK = 32;
/** The sums of a block, and room for what a core makes of them. */
export const TILE_SUMS_BYTES = 4096;
export const TILE_BUFFER_BYTES: number = 2 * TILE_SUMS_BYTES;
const TILE_BYTES = 1024;
/** Words of depth in a tile. */
export const STEP_WORDS = 16;
/** Bytes of a row of B's panels and of the buffer. */
export const PANEL_ROW_BYTES: number = TILE_BLOCK * 4;

/**
 * Local variables of the kernel that this core uses: the buffer's address, the words of the panels'
 * depth, the address of B's panels, then 64 bytes.
 */
export const TILE_CORE_LOCALS = 11;
const LOCAL_BUFFER = 0;
const LOCAL_WORDS = 1;
const LOCAL_B_PANELS = 2;
const LOCAL_CONFIGURATION = 3;

/**
 * Registers beside `CORE_ARGUMENTS`. A block of sums finds the panels of A and B from its depth on
 * at `a` and `b`, and its place in the output at `tile`; `asked` is the row of the output that is
 * asked for next, `ahead` the bytes from `a` to what is asked for of the next rows of A.
 */
export const TILE_AT: Readonly<
  Record<
    "a" | "b" | "wordsLeft" | "tile" | "buffer" | "aStride" | "bStride" | "asked" | "ahead",
    Gp
  >
> = {
  asked: CORE_ARGUMENTS.words,
  ahead: CORE_ARGUMENTS.bPanels,
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
 * Zero that is added to zero beside each 16 words of depth. Vector arithmetic that rests for about
 * 2600 cycles takes about 1000 to come back, and stores of tiles wait for it: a block of 32×32 sums
 * takes 3190 cycles with it and 4130 without at 1024 of depth, both operands in the second-level
 * cache (docs/log.md).
 */
export const IDLE_SUM: Vector = zmm(31);

/** How sums find rows 16 to 31 of A, and the bytes from 16 words of depth to the next. */
export interface TileWalk {
  readonly second: Memory;
  readonly step: number;
}

/** The way through panels of A. */
export const PANEL_WALK: TileWalk = { second: mem(AT.a, TILE_BYTES), step: 2 * TILE_BYTES };

/** The way through 32 rows of A where it stands. */
const ROWS_WALK: TileWalk = { second: mem(AT.buffer), step: 64 };

/** Sums of 16 or 32 rows by 32 columns become zero. */
export function emitClearTiles(tiles: TileUnit, numRowTiles: 1 | 2): void {
  for (let t = 0; t < 2 * numRowTiles; t++) tiles.tilezero(tmm(t));
}

/**
 * Adds to the sums over `wordsLeft` words of the panels at `a` and `b`, which it leaves behind
 * them; `beside` emits what is done beside each 16 words, which keep none but tile registers busy.
 * B passes by: the loads say so, and A stays in the first-level cache for B's next panel, as far as
 * it has room there. Of all that was tried here it gained most (docs/log.md).
 */
export function emitSteps(
  a: X64,
  tiles: TileUnit,
  numRowTiles: 1 | 2,
  { second, step }: TileWalk,
  beside?: () => void,
): void {
  const [a0, a1, b0, b1] = [tmm(4), tmm(5), tmm(6), tmm(7)];
  a.countdown(AT.wordsLeft, STEP_WORDS, () => {
    tiles.tileloadd(a0, mem(AT.a, 0, AT.aStride, 1));
    tiles.tileloaddt1(b0, mem(AT.b, 0, AT.bStride, 1));
    tiles.tdpbf16ps(tmm(0), a0, b0);
    tiles.tileloaddt1(b1, mem(AT.b, 64, AT.bStride, 1));
    tiles.tdpbf16ps(tmm(1), a0, b1);
    if (numRowTiles === 2) {
      tiles.tileloadd(a1, mem(second.base, second.displacement, AT.aStride, 1));
      tiles.tdpbf16ps(tmm(2), a1, b0);
      tiles.tdpbf16ps(tmm(3), a1, b1);
    }
    a.v("vaddps", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
    beside?.();
    a.add(AT.a, step);
    if (second.base !== AT.a) a.add(second.base, step);
    a.add(AT.b, STEP_WORDS * PANEL_ROW_BYTES);
  });
}

/** Asks for so many rows of a block's output, from `asked` on. */
function emitAskForRows(a: X64, count: number): void {
  for (let row = 0; row < count; row++) {
    for (let v = 0; v < 2; v++) a.prefetch(mem(AT.asked, v * 64));
    a.add(AT.asked, CORE_ARGUMENTS.outStrideBytes);
  }
}

/**
 * Sums over all depth of the panels; meanwhile the rows of the output that they will be written to
 * are asked for, one beside 16 words, or four where the depth is too little for that: all at once
 * would keep the loads of tiles waiting for memory.
 */
function emitAllSums(
  a: X64,
  frame: TileFrame,
  numRowTiles: 1 | 2,
  walk: TileWalk,
  askAhead?: () => void,
): void {
  const { tiles } = frame;
  const words = frame.local(LOCAL_WORDS);
  const { wordsLeft } = AT;
  const [shallow, rest] = [a.label(), a.label()];
  /** Asks for the block's 32 rows; then `wordsLeft` is what is left. */
  const ask = (rowsAsked: number): void => {
    const most = (TILE_BLOCK / rowsAsked) * STEP_WORDS;
    a.mov(wordsLeft, most);
    a.cmp(wordsLeft, words);
    a.cmov("g", wordsLeft, words);
    emitSteps(a, tiles, numRowTiles, walk, () => {
      askAhead?.();
      emitAskForRows(a, rowsAsked);
    });
    a.mov(wordsLeft, words);
    a.sub(wordsLeft, most);
  };
  emitClearTiles(tiles, numRowTiles);
  a.mov(AT.asked, AT.tile);
  a.cmp(words, TILE_BLOCK * STEP_WORDS);
  a.j("l", shallow);
  ask(1);
  a.jmp(rest);
  a.bind(shallow);
  ask(4);
  a.bind(rest);
  emitSteps(a, tiles, numRowTiles, walk, askAhead);
}

/** The sums' tiles into the buffer. */
export function emitStoreTiles(tiles: TileUnit, numRowTiles: 1 | 2): void {
  for (let t = 0; t < 2 * numRowTiles; t++) {
    const at = Math.floor(t / 2) * 16 * PANEL_ROW_BYTES + (t % 2) * 64;
    tiles.tilestored(mem(AT.buffer, at, AT.bStride, 1), tmm(t));
  }
}

/** rowsLeft = the rows of a block that exist, in rax. */
function emitRowsLeft(a: X64): typeof r.rax {
  const { rows } = CORE_ARGUMENTS;
  a.mov(r.rax, TILE_BLOCK);
  a.cmp(rows, r.rax);
  a.cmov("l", r.rax, rows);
  return r.rax;
}

/**
 * Calls `emit` for both halves of each existing row of the buffer, and their places in the output
 * at `tile`, columns under a mask.
 */
function emitEachRow(
  a: X64,
  emit: (half: { vector: Vector; from: Memory; to: Memory; exists: MaskRegister }) => void,
): void {
  const [from, to] = [AT.buffer, AT.a];
  const rowsLeft = emitRowsLeft(a);
  a.mov(to, AT.tile);
  a.countdown(rowsLeft, 1, () => {
    for (let v = 0; v < 2; v++) {
      emit({ vector: zmm(v), from: mem(from, v * 64), to: mem(to, v * 64), exists: k(1 + v) });
    }
    a.add(from, PANEL_ROW_BYTES);
    a.add(to, CORE_ARGUMENTS.outStrideBytes);
  });
}

/**
 * The sums to the output at `tile`: a whole block that overwrites it as tiles, another by way of
 * the buffer, from which existing rows and columns are copied or added.
 */
function emitWriteSums(a: X64, { tiles, accumulate, local }: TileFrame, numRowTiles: 1 | 2): void {
  const { rows, columns, outStrideBytes } = CORE_ARGUMENTS;
  const [buffered, done] = [a.label(), a.label()];
  if (numRowTiles === 2) {
    a.cmp(accumulate, 0);
    a.j("ne", buffered);
    for (const left of [rows, columns]) {
      a.cmp(left, TILE_BLOCK);
      a.j("l", buffered);
    }
    const second = AT.a;
    a.imul(second, outStrideBytes, 16);
    a.add(second, AT.tile);
    for (let t = 0; t < 4; t++) {
      const row = t < 2 ? AT.tile : second;
      tiles.tilestored(mem(row, (t % 2) * 64, outStrideBytes, 1), tmm(t));
    }
    a.jmp(done);
  }
  a.bind(buffered);
  emitLaneMasks(a, columns, 2);
  a.mov(AT.buffer, local(LOCAL_BUFFER));
  emitStoreTiles(tiles, numRowTiles);
  emitEither(a, accumulate, (adds) =>
    emitEachRow(a, ({ vector, from, to, exists }) => {
      a.v("vmovups", [vector, from]);
      if (adds) a.v("vaddps", [vector, vector, to], merging(exists));
      a.v("vmovups", [to, vector], merging(exists));
    }),
  );
  a.bind(done);
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
interface TileWork {
  /** The bytes between rows of A where it stands; left out where A is packed. */
  readonly strideOfA?: Memory;
  /**
   * Computes a block of one or two tiles of rows; `buffer` has its address. Leaves `b` behind the
   * panel; may clobber rax, `a`, `buffer` and `asked`.
   */
  readonly emitBlock: (numRowTiles: 1 | 2) => void;
  /** Before the first block beside a panel of A. */
  readonly beforeColumns?: () => void;
  readonly afterColumns?: () => void;
}

/** All panels of A against all panels of B, block by block. */
function emitTilePanels(a: X64, frame: TileFrame, work: TileWork): void {
  const { tiles, local, columns, buffer } = frame;
  const { aPanels, bPanels, out, outStrideBytes, rows, words } = CORE_ARGUMENTS;
  const columnsLeft = CORE_ARGUMENTS.columns;
  a.mov(local(LOCAL_BUFFER), buffer);
  a.mov(local(LOCAL_WORDS), words);
  a.mov(local(LOCAL_B_PANELS), bPanels);
  a.v("vpxord", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
  emitTileConfiguration(a, tiles, local(LOCAL_CONFIGURATION));
  if (work.strideOfA === undefined) a.mov(AT.aStride, 64);
  else a.v("vcvttsd2si", [AT.aStride, work.strideOfA]);
  a.mov(AT.bStride, PANEL_ROW_BYTES);
  a.countdown(rows, TILE_BLOCK, () => {
    a.v("vcvttsd2si", [columnsLeft, columns]);
    a.mov(AT.b, local(LOCAL_B_PANELS));
    work.beforeColumns?.();
    a.mov(AT.tile, out);
    a.countdown(columnsLeft, TILE_BLOCK, () => {
      const oneTile = a.label();
      const done = a.label();
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
    if (work.strideOfA === undefined) a.imul(r.rax, local(LOCAL_WORDS), TILE_BLOCK * 4);
    else a.imul(r.rax, AT.aStride, TILE_BLOCK);
    a.add(aPanels, r.rax);
    a.imul(r.rax, outStrideBytes, TILE_BLOCK);
    a.add(out, r.rax);
  });
  tiles.tilerelease();
}

/** The product of packed blocks. */
export function emitTileCore(a: X64, frame: TileFrame): void {
  emitTilePanels(a, frame, {
    emitBlock: (numRowTiles) => {
      a.mov(AT.a, CORE_ARGUMENTS.aPanels);
      emitAllSums(a, frame, numRowTiles, PANEL_WALK);
      emitWriteSums(a, frame, numRowTiles);
    },
  });
}

/**
 * The same with A where it stands: rows of bf16 are what its tiles hold. `aPanels` has the address
 * of the first; rows are a multiple of `TILE_BLOCK`, words of 16.
 */
export function emitRowsCore(a: X64, frame: TileFrame, aStrideBytes: Memory): void {
  const second = ROWS_WALK.second.base;
  // Two lines of the next 32 rows beside 16 words: all at once would keep the loads waiting.
  const askAhead = (): void => {
    for (const row of [AT.a, second]) a.prefetch(mem(row, 0, AT.ahead, 1), 1);
  };
  emitTilePanels(a, frame, {
    strideOfA: aStrideBytes,
    beforeColumns: () => a.imul(AT.ahead, AT.aStride, TILE_BLOCK),
    emitBlock: (numRowTiles) => {
      if (numRowTiles === 1) return;
      a.mov(AT.a, CORE_ARGUMENTS.aPanels);
      a.imul(second, AT.aStride, 16);
      a.add(second, AT.a);
      emitAllSums(a, frame, 2, ROWS_WALK, askAhead);
      emitWriteSums(a, frame, 2);
    },
    afterColumns: () => a.add(AT.ahead, AT.aStride),
  });
}
