/**
 * @file Operands of the tiled latent attention, packed: queries once a tile, keys and values of a
 * block for all its lane groups. Latents as keys are read where they stand.
 */
import { floorDiv } from "../../base/integers.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { bcst, type Gp, k, type Mask, mem, r, zeroing, zmm } from "../../codegen/x64/operands.ts";
import { emitClear, emitTranspose16 } from "../matmul/x64-pack.ts";
import {
  BLOCK_KEYS,
  constant,
  DEPTH,
  emitDropUpper,
  emitJoinUpper,
  emitSplitPair,
  KEPT,
  LANES,
  LINE_BYTES,
  PARTS,
  TILE_BYTES,
  TILED_AT,
  type TiledCode,
} from "./x64-frame.ts";

/** Columns of the last tile of keys that exist, in k1; clobbers rax. */
export function emitKeyMask({ a, at }: TiledCode): void {
  a.mov(r.rax, 2 ** (at.key - LANES * (at.keyTiles - 1)) - 1);
  a.kmovw(k(1), r.rax);
}

function maskOfKeys(code: TiledCode, tile: number): Mask | null {
  const { key, keyTiles } = code.at;
  return tile + 1 === keyTiles && key % LANES !== 0 ? zeroing(k(1)) : null;
}

const QUERY = { rows: r.rsi, rowsLeft: r.rcx, stride: r.r8, row: r.rdx, to: r.r10, left: r.r11 };

/**
 * The queries of all lane groups, scaled, in parts: words of two neighbouring columns of latents;
 * for keys [high, high], [middle, middle] and [high, low], which their words are multiplied with.
 * Rows that are missing are zeros.
 */
export function emitPackQueries(code: TiledCode): void {
  const { a, at } = code;
  const { rows, rowsLeft, stride, to, left } = QUERY;
  loadSlot(a, rows, TILED_AT.query);
  loadSlot(a, stride, TILED_AT.queryStrideBytes);
  loadSlot(a, rowsLeft, TILED_AT.numRows);
  emitKeyMask(code);
  a.lea(KEPT.group, mem(KEPT.scratch, at.groups));
  a.countdown(rowsLeft, LANES, () => {
    a.mov(r.r9, rows);
    a.lea(to, mem(KEPT.group, at.ofGroup.query));
    a.mov(left, at.latent);
    a.countdown(left, DEPTH, () => {
      for (let half = 0; half < 2; half++) {
        emitQueryColumns(code, half * LINE_BYTES, null);
        emitLatentWords(code, half);
      }
      a.add(r.r9, 2 * LINE_BYTES);
      a.add(to, PARTS * TILE_BYTES);
    });
    for (let tile = 0; tile < at.keyTiles; tile++) {
      emitQueryColumns(code, tile * LINE_BYTES, maskOfKeys(code, tile));
      emitKeyWords(code, tile);
    }
    a.imul(r.rax, stride, LANES);
    a.add(rows, r.rax);
    a.add(KEPT.group, at.groupBytes);
  });
}

/** 16 columns from a displacement of r9 on, as rows in zmm0..15; zmm16 gets the upper halves. */
function emitQueryColumns(code: TiledCode, displacement: number, mask: Mask | null): void {
  const { a } = code;
  const { rowsLeft, stride, row } = QUERY;
  const done = a.label();
  emitClear(a, LANES);
  a.mov(row, r.r9);
  for (let index = 0; index < LANES; index++) {
    a.cmp(rowsLeft, index);
    a.j("le", done);
    a.v("vmovups", [zmm(index), mem(row, displacement)], mask);
    a.v("vmulps", [zmm(index), zmm(index), bcst(constant(code, "scale"))]);
    a.add(row, stride);
  }
  a.bind(done);
  emitTranspose16(a);
  a.v("vbroadcastss", [zmm(16), constant(code, "upperHalf")]);
}

function emitLatentWords({ a }: TiledCode, half: number): void {
  for (let pair = 0; pair < LANES / 2; pair++) {
    const row = (half * LANES) / 2 + pair;
    const columns = [zmm(2 * pair), zmm(2 * pair + 1)] as const;
    emitSplitPair(a, columns, { mask: zmm(16), spare: zmm(17) }, (part, word) => {
      a.v("vmovups", [mem(QUERY.to, part * TILE_BYTES + row * LINE_BYTES), word]);
    });
  }
}

function emitKeyWords({ a, at }: TiledCode, tile: number): void {
  const [mask, word, spare] = [zmm(16), zmm(17), zmm(18)];
  const first = at.ofGroup.queryKeys + tile * PARTS * TILE_BYTES;
  for (let column = 0; column < LANES; column++) {
    const x = zmm(column);
    const to = (part: number) => mem(KEPT.group, first + part * TILE_BYTES + column * LINE_BYTES);
    const high = zmm(19);
    a.v("vmovaps", [high, x]);
    emitJoinUpper(a, word, x, x, mask);
    a.v("vmovups", [to(0), word]);
    emitDropUpper(a, x, mask, spare);
    emitJoinUpper(a, word, x, x, mask);
    a.v("vmovups", [to(1), word]);
    emitDropUpper(a, x, mask, spare);
    emitJoinUpper(a, word, high, x, mask);
    a.v("vmovups", [to(2), word]);
  }
}

/** Where a block's keys stand, and the block after it, which is asked for meanwhile. */
export const BLOCK: Readonly<Record<"keys" | "keysStride" | "nextLatents" | "nextKeys", Gp>> = {
  keys: r.r10,
  keysStride: r.r11,
  nextLatents: r.rsi,
  nextKeys: r.r13,
};

/** Keys of a block in parts: words [high, middle] in one tile's row, [low, high] in another's. */
export function emitPackKeys(code: TiledCode): void {
  const { a, at } = code;
  const [to, left] = [r.rdx, r.rcx];
  const [mask, x, high, word, spare] = [zmm(0), zmm(1), zmm(2), zmm(3), zmm(4)];
  const secondTiles = BLOCK_KEYS * LINE_BYTES;
  emitKeyMask(code);
  a.v("vbroadcastss", [mask, constant(code, "upperHalf")]);
  a.lea(to, mem(KEPT.scratch, at.keys));
  a.mov(left, BLOCK_KEYS);
  a.countdown(left, 1, () => {
    for (let tile = 0; tile < at.keyTiles; tile++) {
      const row = 2 * tile * secondTiles;
      a.v("vmovups", [high, mem(BLOCK.keys, tile * LINE_BYTES)], maskOfKeys(code, tile));
      a.prefetch(mem(BLOCK.nextKeys, tile * LINE_BYTES), 1);
      a.v("vmovaps", [x, high]);
      emitDropUpper(a, x, mask, spare);
      emitJoinUpper(a, word, high, x, mask);
      a.v("vmovups", [mem(to, row), word]);
      emitDropUpper(a, x, mask, spare);
      emitJoinUpper(a, word, x, high, mask);
      a.v("vmovups", [mem(to, row + secondTiles), word]);
    }
    for (let byte = 0; byte < at.latent * 2; byte += LINE_BYTES) {
      a.prefetch(mem(BLOCK.nextLatents, byte), 1);
    }
    a.add(BLOCK.keys, BLOCK.keysStride);
    a.add(BLOCK.nextKeys, BLOCK.keysStride);
    a.add(BLOCK.nextLatents, KEPT.latentsStride);
    a.add(to, LINE_BYTES);
  });
}

/**
 * A block's latents with columns as rows: of 32 keys, words of the keys j and j + 16. Interleaving
 * two keys leaves four columns of every eight in one vector and four in another.
 */
export function emitPackValues({ a, at }: TiledCode): void {
  const [columns, row, half, to, left] = [r.rsi, r.rdx, r.r13, r.r10, r.rcx];
  const { latents, latentsStride } = KEPT;
  a.imul(half, latentsStride, LANES);
  for (let first = 0; first < BLOCK_KEYS; first += DEPTH) {
    a.imul(columns, latentsStride, first);
    a.add(columns, latents);
    const ofKeys = floorDiv(first, DEPTH) * floorDiv(at.latent, LANES) * TILE_BYTES;
    a.lea(to, mem(KEPT.scratch, at.values + ofKeys));
    a.mov(left, at.latent);
    a.countdown(left, DEPTH, () => {
      for (const [unpack, offset] of [
        ["vpunpcklwd", 0],
        ["vpunpckhwd", 4],
      ] as const) {
        a.mov(row, columns);
        for (let key = 0; key < LANES; key++) {
          a.v("vmovdqu32", [zmm(key), mem(row)]);
          a.v(unpack, [zmm(key), zmm(key), mem(row, 0, half, 1)]);
          if (key + 1 < LANES) a.add(row, latentsStride);
        }
        emitTranspose16(a);
        for (let index = 0; index < LANES; index++) {
          const column = 8 * (index >> 2) + (index & 3) + offset;
          a.v("vmovups", [mem(to, column * LINE_BYTES), zmm(index)]);
        }
      }
      a.add(columns, LINE_BYTES);
      a.add(to, 2 * TILE_BYTES);
    });
  }
}

/**
 * A copy of a block that is not full, zeros behind it: nothing may be looked at there. `rowsLeft`
 * in rcx; `latents` and `BLOCK` mean the copy afterwards.
 */
export function emitCopyLast(code: TiledCode): void {
  const { a, at } = code;
  const [rowsLeft, toLatents, toKeys] = [r.rcx, r.rdx, r.rsi];
  emitKeyMask(code);
  a.lea(toLatents, mem(KEPT.scratch, at.lastLatents));
  a.lea(toKeys, mem(KEPT.scratch, at.lastKeys));
  const emitRow = (load: (tile: number, of: "latents" | "keys") => void): void => {
    for (let tile = 0; tile < floorDiv(at.latent, DEPTH); tile++) {
      load(tile, "latents");
      a.v("vmovups", [mem(toLatents, tile * LINE_BYTES), zmm(0)]);
    }
    for (let tile = 0; tile < at.keyTiles; tile++) {
      load(tile, "keys");
      a.v("vmovups", [mem(toKeys, tile * LINE_BYTES), zmm(0)]);
    }
    a.add(toLatents, at.latent * 2);
    a.add(toKeys, at.keyTiles * LINE_BYTES);
  };
  a.mov(r.rax, BLOCK_KEYS);
  a.sub(r.rax, rowsLeft);
  a.countdown(rowsLeft, 1, () => {
    emitRow((tile, of) => {
      const from = of === "keys" ? BLOCK.keys : KEPT.latents;
      const mask = of === "keys" ? maskOfKeys(code, tile) : null;
      a.v("vmovups", [zmm(0), mem(from, tile * LINE_BYTES)], mask);
    });
    a.add(KEPT.latents, KEPT.latentsStride);
    a.add(BLOCK.keys, BLOCK.keysStride);
  });
  emitClear(a, 1);
  a.countdown(r.rax, 1, () => emitRow(() => {}));
  a.lea(KEPT.latents, mem(KEPT.scratch, at.lastLatents));
  a.lea(BLOCK.keys, mem(KEPT.scratch, at.lastKeys));
  a.mov(KEPT.latentsStride, at.latent * 2);
  a.mov(BLOCK.keysStride, at.keyTiles * LINE_BYTES);
}
