/** @file Operands of attention over AMX tiles: rows rounded to bf16, turned as products want. */
import { floorDiv } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, type Memory, mem, r, type Vector, zmm } from "../../codegen/x64/operands.ts";
import { emitClear, emitTranspose16 } from "../matmul/x64-pack.ts";
import {
  BLOCK,
  emitRowAddress,
  inRound,
  inScratch,
  KEPT,
  LANES,
  LINE_BYTES,
  TILE_BYTES,
  type TiledCode,
} from "./x64-frame.ts";

/** Rows of f32 in memory: slots of the first one's address and of the stride; columns. */
export interface RowSource {
  readonly base: number;
  readonly stride: number;
  readonly columns: number;
}

const SOURCE_REGISTERS: readonly (readonly [row: Gp, stride: Gp])[] = [
  [r.rsi, r.r8],
  [r.r9, r.r10],
];
const [TO, LEFT, MISSING, FACTOR] = [r.rdx, r.rcx, r.rbp, r.rbx] as const;

/**
 * The 32 rows from `start` on as bf16, at `to` (which may clobber rax): columns of the sources side
 * by side, zeros for rows that do not exist. `factors` is where each row's factor stands, if any.
 */
export function emitPackRows(
  { a }: TiledCode,
  sources: readonly RowSource[],
  emitTo: (to: Gp) => void,
  factors: number | null = null,
): void {
  const parts = sources.flatMap(({ columns }, source) =>
    Array.from({ length: columns / LANES }, (_, part) =>
      mem(SOURCE_REGISTERS[source]![0], part * LINE_BYTES),
    ),
  );
  const numLines = Math.ceil(parts.length / 2);
  const existing = sources.map((_, source) => SOURCE_REGISTERS[source]!);
  for (const [source, [row, stride]] of existing.entries()) {
    loadSlot(a, stride, sources[source]!.stride);
    emitRowAddress(a, row, sources[source]!.base, stride);
  }
  emitTo(TO);
  if (factors !== null) a.lea(FACTOR, inScratch(factors));
  emitClear(a, 1);
  a.mov(LEFT, BLOCK);
  a.cmp(KEPT.rowsLeft, LEFT);
  a.cmov("l", LEFT, KEPT.rowsLeft);
  a.mov(MISSING, BLOCK);
  a.sub(MISSING, LEFT);
  a.countdown(LEFT, 1, () => {
    if (factors !== null) a.v("vbroadcastss", [zmm(1), mem(FACTOR)]);
    for (let line = 0; line < numLines; line++) {
      const [low, high] = [parts[2 * line]!, parts[2 * line + 1] ?? null];
      emitRoundLine(a, zmm(2 + (line % 8)), { low, high, isScaled: factors !== null });
      a.v("vmovups", [mem(TO, line * LINE_BYTES), zmm(2 + (line % 8))]);
    }
    for (const [row, stride] of existing) a.add(row, stride);
    if (factors !== null) a.add(FACTOR, 4);
    a.add(TO, numLines * LINE_BYTES);
  });
  a.countdown(MISSING, 1, () => {
    for (let line = 0; line < numLines; line++) {
      a.v("vmovups", [mem(TO, line * LINE_BYTES), zmm(0)]);
    }
    a.add(TO, numLines * LINE_BYTES);
  });
}

/** 32 columns of a row, of which the upper half may be missing; times zmm1 if scaled. */
function emitRoundLine(
  a: X64,
  to: Vector,
  {
    low,
    high,
    isScaled,
  }: { readonly low: Memory; readonly high: Memory | null; readonly isScaled: boolean },
): void {
  const [zero, factor, scaled] = [zmm(0), zmm(1), zmm(16)];
  if (!isScaled) {
    if (high !== null) a.v("vmovups", [to, high]);
    a.v("vcvtne2ps2bf16", [to, high === null ? zero : to, low]);
    return;
  }
  a.v("vmulps", [scaled, factor, low]);
  if (high !== null) a.v("vmulps", [to, factor, high]);
  a.v("vcvtne2ps2bf16", [to, high === null ? zero : to, scaled]);
}

/** Rows at `rows` of the scratch, `numTiles` lines each, as lanes at `to` (x64-frame.ts). */
export function emitPackLanes(
  { a }: TiledCode,
  { rows, to, numTiles }: { readonly rows: number; readonly to: number; readonly numTiles: number },
): void {
  const rowBytes = numTiles * LINE_BYTES;
  const [from, into, left] = [r.rsi, r.rdx, r.rcx];
  a.lea(from, inScratch(rows));
  a.lea(into, inScratch(to));
  a.mov(left, numTiles);
  a.countdown(left, 1, () => {
    for (let half = 0; half < 2; half++) {
      for (let row = 0; row < LANES; row++) {
        a.v("vmovups", [zmm(row), mem(from, (half * LANES + row) * rowBytes)]);
      }
      emitTranspose16(a);
      for (let pair = 0; pair < LANES; pair++) {
        a.v("vmovups", [mem(into, half * TILE_BYTES + pair * LINE_BYTES), zmm(pair)]);
      }
    }
    a.add(from, LINE_BYTES);
    a.add(into, 2 * TILE_BYTES);
  });
}

/** The same rows as pairs, so many bytes behind the first ones of the stripe. */
export function emitPackPairs(
  code: TiledCode,
  { rows, to, numTiles }: { readonly rows: number; readonly to: number; readonly numTiles: number },
): void {
  const { a, at } = code;
  const rowBytes = numTiles * LINE_BYTES;
  const [from, into, left] = [r.rsi, r.rdx, r.rcx];
  const pairing = [zmm(30), zmm(31)] as const;
  for (let half = 0; half < 2; half++) {
    a.v("vmovups", [pairing[half]!, inScratch(at.pairing + half * LINE_BYTES)]);
  }
  a.lea(from, inScratch(rows));
  a.mov(into, inRound(code, "pairs"));
  a.add(into, to);
  a.mov(left, numTiles);
  a.countdown(left, 1, () => {
    for (let row = 0; row < LANES; row++) {
      const first = zmm((3 * row) % 24);
      a.v("vmovups", [first, mem(from, row * rowBytes)]);
      for (let half = 0; half < 2; half++) {
        const words = zmm(((3 * row) % 24) + 1 + half);
        a.v("vmovaps", [words, pairing[half]!]);
        a.v("vpermi2w", [words, first, mem(from, (LANES + row) * rowBytes)]);
        a.v("vmovups", [mem(into, half * TILE_BYTES + row * LINE_BYTES), words]);
      }
    }
    a.add(from, LINE_BYTES);
    a.add(into, 2 * TILE_BYTES);
  });
}

/** What `emitPackPairs` takes its words by; clobbers rax. */
export function emitPairing({ a, at }: TiledCode): void {
  for (let word = 0; word < BLOCK; word++) {
    a.mov(r.rax, word | ((BLOCK + word) << 16));
    a.mov32(inScratch(at.pairing + 4 * word), r.rax);
  }
}

/**
 * A block's rows, at `from`, as columns, at `to`, both registers that move on. Interleaving two
 * rows leaves four columns of every eight in one vector and four in another.
 */
export function emitPackColumns(
  { a }: TiledCode,
  { from, to, numTiles }: { readonly from: Gp; readonly to: Gp; readonly numTiles: number },
): void {
  const rowBytes = numTiles * LINE_BYTES;
  const left = r.rcx;
  a.mov(left, numTiles);
  a.countdown(left, 1, () => {
    for (const [unpack, offset] of [
      ["vpunpcklwd", 0],
      ["vpunpckhwd", 4],
    ] as const) {
      for (let pair = 0; pair < LANES; pair++) {
        a.v("vmovups", [zmm(pair), mem(from, 2 * pair * rowBytes)]);
        a.v(unpack, [zmm(pair), zmm(pair), mem(from, (2 * pair + 1) * rowBytes)]);
      }
      emitTranspose16(a);
      for (let index = 0; index < LANES; index++) {
        const column = 8 * floorDiv(index, 4) + (index % 4) + offset;
        a.v("vmovups", [mem(to, column * LINE_BYTES), zmm(index)]);
      }
    }
    a.add(from, LINE_BYTES);
    a.add(to, 2 * TILE_BYTES);
  });
}
