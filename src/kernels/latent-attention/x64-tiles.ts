/**
 * @file Latent attention of one tile of queries over AMX tiles: blocks of keys where they stand.
 *
 *     for each block of 64 keys:
 *       keys and values of the block are packed, once for all rows
 *       for each lane group of 16 rows:
 *         scores = latents · queryᵀ + keys · queryᵀ      latents read from the cache itself
 *         weights, factor = softmax (x64-softmax.ts)
 *         out = out · factor + valuesᵀ · weights
 *     out = out / total
 *
 * Latents are bf16; whatever they meet is f32, taken as three bf16 (x64-frame.ts), so that products
 * are those of f32 up to the order of sums. Of key times query the three smallest of nine products
 * of parts are left out: together they are below 2^-21 of it.
 *
 * Blocks are cut at fixed positions and lanes never meet, so a row's bits depend on its own query
 * and keys alone. Weights of unseen keys are exact zeros; 0 · NaN is NaN, so a latent that is not
 * finite leaks into rows of the tile that do not see it: the caller looks for it and calls again.
 */
import { floorDiv } from "../../base/integers.ts";
import { EXP2 } from "../../codegen/vector/math.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import {
  type Gp,
  k,
  type Memory,
  mem,
  merging,
  r,
  type Tile,
  tmm,
  zmm,
} from "../../codegen/x64/operands.ts";
import { emitClear, emitTranspose16 } from "../matmul/x64-pack.ts";
import { emitTileConfiguration, type TileUnit } from "../matmul/x64-tile-core.ts";
import {
  BLOCK_KEYS,
  type CONSTANTS,
  constant,
  DEPTH,
  inGroup,
  inScratch,
  KEPT,
  LANES,
  LINE_BYTES,
  PARTS,
  TILE_BYTES,
  TILED_AT,
  type TiledCode,
  type TiledLayout,
  tileAt,
} from "./x64-frame.ts";
import { BLOCK, emitCopyLast, emitPackKeys, emitPackQueries, emitPackValues } from "./x64-pack.ts";
import { emitHideKeys, emitSoftmax, FACTOR, MINUS_INFINITY } from "./x64-softmax.ts";

/** Local variables: the next block's number, keys from the block on, its first key, groups left. */
const LOCALS = ["table", "keysLeft", "start", "groupsLeft"] as const;

/** Tiles of keys, or of columns, that are summed side by side. */
const SIDE_BY_SIDE = 4;
const GREATER = 6;

/**
 * What is loaded beside the four sums, in turns: a load need not wait for the product that reads
 * what it replaces.
 */
const QUERY_TILES: readonly [Tile, Tile] = [tmm(4), tmm(7)];
const OTHER_TILES: readonly [Tile, Tile] = [tmm(5), tmm(6)];

function inTurn(pair: readonly [Tile, Tile], step: number): Tile {
  return step % 2 === 0 ? pair[0] : pair[1];
}

/** The code for a layout, with the tile instructions of `unit` (null: the processor's). */
export function emitTiledAttention(
  at: TiledLayout,
  unit: ((a: X64) => TileUnit) | null,
): Uint8Array {
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const local = (name: (typeof LOCALS)[number]): Memory => localAt(LOCALS.indexOf(name));
      const code = { a, at, tiles: unit === null ? a : unit(a), start: local("start") };
      emitSetUp(code);
      emitPackQueries(code);
      emitClearGroups(code, local("groupsLeft"));
      loadSlot(a, r.rax, TILED_AT.table);
      a.mov(local("table"), r.rax);
      loadSlot(a, r.rax, TILED_AT.numKeys);
      a.mov(local("keysLeft"), r.rax);
      a.mov(local("start"), 0);
      const next = a.label();
      a.bind(next);
      emitFindBlock(code, local("table"), local("keysLeft"));
      emitPackKeys(code);
      emitPackValues(code);
      emitEachGroup(code, local("groupsLeft"), () => emitGroupBlock(code));
      a.add(local("start"), BLOCK_KEYS);
      a.sub(local("keysLeft"), BLOCK_KEYS);
      a.j("g", next);
      emitOutput(code);
      code.tiles.tilerelease();
    },
  });
}

/** The scratch, its constants and the tiles' shape. */
function emitSetUp(code: TiledCode): void {
  const { a, at, tiles } = code;
  loadSlot(a, KEPT.scratch, TILED_AT.scratch);
  a.mov(KEPT.line, LINE_BYTES);
  emitTileConfiguration(a, tiles, inScratch(at.configuration));
  const [c5, c4, c3, c2, c1, c0] = EXP2.polynomial;
  const floats = { one: 1, least: EXP2.least, shift: EXP2.shift, c5, c4, c3, c2, c1, c0 };
  const store = (name: (typeof CONSTANTS)[number], bits: number): void => {
    a.mov(r.rax, bits);
    a.mov32(constant(code, name), r.rax);
  };
  store("upperHalf", 0xffff0000 | 0);
  for (const name of Object.keys(floats) as (keyof typeof floats)[]) {
    store(name, bitsOf(floats[name]));
  }
  a.v("vcvtsd2ss", [zmm(0), zmm(0), mem(KEPT.slots, 8 * TILED_AT.scale)]);
  a.v("vmovss m32", [constant(code, "scale"), zmm(0)]);
}

function bitsOf(value: number): number {
  return new Int32Array(Float32Array.of(value).buffer)[0]!;
}

/** Every lane group, `group` and `limits` at its own. */
function emitEachGroup({ a, at }: TiledCode, groupsLeft: Memory, body: () => void): void {
  const next = a.label();
  loadSlot(a, r.rax, TILED_AT.numRows);
  a.mov(groupsLeft, r.rax);
  a.lea(KEPT.group, inScratch(at.groups));
  a.lea(KEPT.limits, inScratch(at.limits));
  a.bind(next);
  body();
  a.add(KEPT.group, at.groupBytes);
  a.add(KEPT.limits, LINE_BYTES);
  a.sub(groupsLeft, LANES);
  a.j("g", next);
}

/** Nothing seen yet. */
function emitClearGroups(code: TiledCode, groupsLeft: Memory): void {
  const { a, at } = code;
  const { out, top, total } = at.ofGroup;
  const [to, left] = [r.rdx, r.rcx];
  emitClear(a, 1);
  a.mov(r.rax, MINUS_INFINITY);
  a.v("vpbroadcastd r32", [zmm(1), r.rax]);
  emitEachGroup(code, groupsLeft, () => {
    a.lea(to, inGroup(out));
    a.mov(left, at.latent);
    a.countdown(left, 8, () => {
      for (let column = 0; column < 8; column++) a.v("vmovups", [mem(to, column * 64), zmm(0)]);
      a.add(to, 8 * LINE_BYTES);
    });
    a.v("vmovups", [inGroup(top), zmm(1)]);
    a.v("vmovups", [inGroup(total), zmm(0)]);
  });
}

/** Where the block's latents and keys stand, and the next one's. */
function emitFindBlock(code: TiledCode, table: Memory, keysLeft: Memory): void {
  const { a } = code;
  const { keys, keysStride, nextLatents, nextKeys } = BLOCK;
  const { latents, latentsStride } = KEPT;
  loadSlot(a, latentsStride, TILED_AT.latentsStrideBytes);
  loadSlot(a, keysStride, TILED_AT.keysStrideBytes);
  const toRows = (to: Gp, stride: Gp, base: number): void => {
    a.mov(to, r.rax);
    a.imul(to, stride);
    a.imul(to, to, BLOCK_KEYS);
    loadSlot(a, r.rcx, base);
    a.add(to, r.rcx);
  };
  a.mov(r.rdx, table);
  a.movsxd(r.rax, mem(r.rdx));
  toRows(latents, latentsStride, TILED_AT.latents);
  toRows(keys, keysStride, TILED_AT.keys);
  const [isLast, isFull] = [a.label(), a.label()];
  a.mov(r.rcx, keysLeft);
  a.cmp(r.rcx, BLOCK_KEYS);
  a.j("le", isLast);
  a.movsxd(r.rax, mem(r.rdx, 4));
  a.bind(isLast);
  toRows(nextLatents, latentsStride, TILED_AT.latents);
  toRows(nextKeys, keysStride, TILED_AT.keys);
  a.add(r.rdx, 4);
  a.mov(table, r.rdx);
  a.mov(r.rcx, keysLeft);
  a.cmp(r.rcx, BLOCK_KEYS);
  a.j("ge", isFull);
  emitCopyLast(code);
  a.bind(isFull);
}

/** A block's share of a lane group's output, if any of its rows sees one of the keys. */
function emitGroupBlock(code: TiledCode): void {
  const { a, start } = code;
  const unseen = a.label();
  a.movsxd(r.rax, mem(KEPT.limits, LINE_BYTES - 4));
  a.cmp(r.rax, start);
  a.j("le", unseen);
  emitScores(code);
  emitHideKeys(code);
  emitSoftmax(code);
  emitMix(code);
  emitJoinPart(code);
  a.bind(unseen);
}

/** Scores of 64 keys in four tiles of 16. */
function emitScores({ a, at, tiles }: TiledCode): void {
  const rows = [KEPT.latents, r.rdx, r.rcx, r.rbp];
  for (let tile = 1; tile < rows.length; tile++) {
    a.imul(r.rax, KEPT.latentsStride, tile * LANES);
    a.lea(rows[tile]!, mem(KEPT.latents, 0, r.rax, 1));
  }
  for (let tile = 0; tile < rows.length; tile++) tiles.tilezero(tmm(tile));
  let step = 0;
  const addProducts = (queryTile: number, keysAt: (tile: number) => Memory): void => {
    const query = inTurn(QUERY_TILES, step++);
    tiles.tileloadd(query, tileAt(inGroup(queryTile)));
    for (let tile = 0; tile < rows.length; tile++) {
      const loaded = inTurn(OTHER_TILES, tile);
      tiles.tileloadd(loaded, keysAt(tile));
      tiles.tdpbf16ps(tmm(tile), loaded, query);
    }
  };
  for (let tile = 0; tile < at.keyTiles; tile++) {
    for (let part = 0; part < PARTS; part++) {
      const side = at.keys + (2 * tile + (part === 2 ? 1 : 0)) * BLOCK_KEYS * LINE_BYTES;
      addProducts(at.ofGroup.queryKeys + (tile * PARTS + part) * TILE_BYTES, (keys) =>
        tileAt(inScratch(side + keys * TILE_BYTES)),
      );
    }
  }
  for (let depth = 0; depth < at.latent; depth += DEPTH) {
    for (let part = 0; part < PARTS; part++) {
      const queryTile = floorDiv(depth, DEPTH) * PARTS + part;
      addProducts(at.ofGroup.query + queryTile * TILE_BYTES, (keys) =>
        mem(rows[keys]!, depth * 2, KEPT.latentsStride, 1),
      );
    }
  }
  for (let tile = 0; tile < rows.length; tile++) {
    tiles.tilestored(tileAt(inScratch(at.scores + tile * TILE_BYTES)), tmm(tile));
  }
}

/** The block's part of the output: weights times values, with columns as rows. */
function emitMix({ at, tiles }: TiledCode): void {
  const columnTiles = floorDiv(at.latent, LANES);
  for (let from = 0; from < columnTiles; from += SIDE_BY_SIDE) {
    const count = Math.min(SIDE_BY_SIDE, columnTiles - from);
    for (let tile = 0; tile < count; tile++) tiles.tilezero(tmm(tile));
    for (let half = 0; half < BLOCK_KEYS / DEPTH; half++) {
      for (let part = 0; part < PARTS; part++) {
        const weights = inTurn(QUERY_TILES, part);
        tiles.tileloadd(
          weights,
          tileAt(inScratch(at.weights + (half * PARTS + part) * TILE_BYTES)),
        );
        for (let tile = 0; tile < count; tile++) {
          const loaded = inTurn(OTHER_TILES, tile);
          const place = at.values + (half * columnTiles + from + tile) * TILE_BYTES;
          tiles.tileloadd(loaded, tileAt(inScratch(place)));
          tiles.tdpbf16ps(tmm(tile), loaded, weights);
        }
      }
    }
    for (let tile = 0; tile < count; tile++) {
      tiles.tilestored(tileAt(inScratch(at.part + (from + tile) * TILE_BYTES)), tmm(tile));
    }
  }
}

/** out = out · factor + part, in rows that see any of the block's keys. */
function emitJoinPart({ a, at, start }: TiledCode): void {
  const [out, part, left] = [r.rdx, r.rsi, r.rcx];
  a.v("vpbroadcastd", [zmm(0), start]);
  a.v("vmovups", [zmm(1), mem(KEPT.limits)]);
  a.v("vpcmpd", [k(1), zmm(1), zmm(0), GREATER]);
  a.lea(out, inGroup(at.ofGroup.out));
  a.lea(part, inScratch(at.part));
  a.mov(left, at.latent);
  a.countdown(left, 8, () => {
    for (let column = 0; column < 8; column++) {
      const sum = zmm(2 + column);
      a.v("vmovups", [sum, mem(out, column * LINE_BYTES)]);
      a.v("vfmadd213ps", [sum, FACTOR, mem(part, column * LINE_BYTES)]);
      a.v("vmovups", [mem(out, column * LINE_BYTES), sum], merging(k(1)));
    }
    a.add(out, 8 * LINE_BYTES);
    a.add(part, 8 * LINE_BYTES);
  });
}

/** Outputs divided by their totals, row by row. */
function emitOutput(code: TiledCode): void {
  const { a, at } = code;
  const [out, stride, rowsLeft, from, to, row, left] = [
    ...[r.r10, r.r11, r.rcx, r.rsi],
    ...[r.r8, r.rdx, r.rbp],
  ] as [Gp, Gp, Gp, Gp, Gp, Gp, Gp];
  loadSlot(a, out, TILED_AT.out);
  loadSlot(a, stride, TILED_AT.outStrideBytes);
  loadSlot(a, rowsLeft, TILED_AT.numRows);
  a.lea(KEPT.group, inScratch(at.groups));
  a.countdown(rowsLeft, LANES, () => {
    const { out: ofGroup, total } = at.ofGroup;
    a.v("vbroadcastss", [zmm(0), constant(code, "one")]);
    a.v("vdivps", [zmm(0), zmm(0), inGroup(total)]);
    a.v("vmovups", [inGroup(total), zmm(0)]);
    a.lea(from, inGroup(ofGroup));
    a.mov(to, out);
    a.mov(left, at.latent);
    a.countdown(left, LANES, () => {
      const done = a.label();
      a.v("vmovups", [zmm(16), inGroup(total)]);
      for (let column = 0; column < LANES; column++) {
        a.v("vmulps", [zmm(column), zmm(16), mem(from, column * LINE_BYTES)]);
      }
      emitTranspose16(a);
      a.mov(row, to);
      for (let index = 0; index < LANES; index++) {
        a.cmp(rowsLeft, index);
        a.j("le", done);
        a.v("vmovups", [mem(row), zmm(index)]);
        a.add(row, stride);
      }
      a.bind(done);
      a.add(from, LANES * LINE_BYTES);
      a.add(to, LINE_BYTES);
    });
    a.imul(r.rax, stride, LANES);
    a.add(out, r.rax);
    a.add(KEPT.group, at.groupBytes);
  });
}
