/**
 * @file What the parts of the tiled latent attention share: its arguments, its scratch, and f32 as
 * three bf16.
 *
 * Query rows stand in lanes everywhere: 16 of them are a lane group, with a vector for each key's
 * scores, each column of the output, the largest score and the sum. So no row ever meets another.
 *
 *     x = high + middle + low, exactly: each has the next eight bits of x that are not yet taken
 *
 * A part is the upper half of an f32 whose lower half is cut off, so two parts become a word by one
 * shift and one selection of bits. What is not finite leaves NaN in a part.
 */
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { type Gp, type Memory, mem, r, type Vector } from "../../codegen/x64/operands.ts";
import { slotIndex } from "../kernel.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";
import { LATENT_BLOCK_TOKENS, TILE_ROWS_MAX } from "./contract.ts";

/** Rows of a lane group, and keys and columns of a tile. */
export const LANES = 16;
/** Keys whose scores exist at once. */
export const BLOCK_KEYS: number = LATENT_BLOCK_TOKENS;
export const TILE_BYTES = 1024;
/** Of a row of a tile, and of a lane group's vector. */
export const LINE_BYTES = 64;
/** Columns of latents that a tile holds. */
export const DEPTH = 32;
/** bf16 that make an f32. */
export const PARTS = 3;
/** Tiles of queries that meet a tile's columns, of latents or of keys: one for each part. */
const QUERY_TILES = PARTS;

const SLOTS = [
  "query",
  "queryStrideBytes",
  "latents",
  "latentsStrideBytes",
  "keys",
  "keysStrideBytes",
  "table",
  "numRows",
  "numKeys",
  "out",
  "outStrideBytes",
  "scale",
  "scratch",
] as const;
/** Arguments; places are addresses, `table` that of the first block's number. */
export const TILED_AT: Record<(typeof SLOTS)[number], number> = slotIndex(SLOTS);
export const TILED_SLOTS: number = SLOTS.length;

/** Constants in the scratch, 32 bits each. The polynomial's coefficients follow each other. */
export const CONSTANTS = [
  "upperHalf",
  "one",
  "scale",
  "least",
  "shift",
  "c5",
  "c4",
  "c3",
  "c2",
  "c1",
  "c0",
] as const;

/** Sizes that the code is made for, and where things stand in the scratch, in bytes. */
export interface TiledLayout {
  /** Columns of latents, a multiple of `DEPTH`. */
  readonly latent: number;
  readonly key: number;
  /** Keys take so many tiles side by side, of 16 columns each. */
  readonly keyTiles: number;
  readonly configuration: number;
  readonly constants: number;
  /** Keys that each row sees, i32. */
  readonly limits: number;
  /** f32, a vector a key. */
  readonly scores: number;
  /** Weights in parts: tiles of pairs of keys, [32 keys][part]. */
  readonly weights: number;
  /** A block's share of the output, a vector a column. */
  readonly part: number;
  /** Latents with their columns as rows: tiles [32 keys][16 columns]. */
  readonly values: number;
  /** Keys in parts, rows of a tile: [16 columns][first, second][key]. */
  readonly keys: number;
  /** A last block that is not full, with zeros behind it. */
  readonly lastLatents: number;
  readonly lastKeys: number;
  readonly groups: number;
  /** Bytes of a lane group, and where its parts stand in it. */
  readonly groupBytes: number;
  readonly ofGroup: Readonly<Record<"query" | "queryKeys" | "out" | "top" | "total", number>>;
  readonly end: number;
}

export function tiledLayout(latent: number, key: number): TiledLayout {
  const keyTiles = floorDiv(key + LANES - 1, LANES);
  let next = 0;
  const take = (bytes: number): number => {
    const at = next;
    next += roundUp(bytes, LINE_BYTES);
    return at;
  };
  const ofGroup = {
    query: take(floorDiv(latent, DEPTH) * QUERY_TILES * TILE_BYTES),
    queryKeys: take(keyTiles * QUERY_TILES * TILE_BYTES),
    out: take(latent * LINE_BYTES),
    top: take(LINE_BYTES),
    total: take(LINE_BYTES),
  };
  const groupBytes = next;
  next = 0;
  const places = {
    configuration: take(LINE_BYTES),
    constants: take(CONSTANTS.length * 4),
    limits: take(TILE_ROWS_MAX * 4),
    scores: take(BLOCK_KEYS * LINE_BYTES),
    weights: take((BLOCK_KEYS / DEPTH) * PARTS * TILE_BYTES),
    part: take(latent * LINE_BYTES),
    values: take((BLOCK_KEYS / DEPTH) * (latent / LANES) * TILE_BYTES),
    keys: take(keyTiles * 2 * BLOCK_KEYS * LINE_BYTES),
    lastLatents: take(BLOCK_KEYS * latent * 2),
    lastKeys: take(BLOCK_KEYS * keyTiles * LINE_BYTES),
    groups: take((TILE_ROWS_MAX / LANES) * groupBytes),
  };
  return { latent, key, keyTiles, ...places, groupBytes, ofGroup, end: next };
}

/**
 * Registers that keep their meaning: the arguments; the scratch; 64, the stride of tiles in it; the
 * block's latents and the bytes between their rows; the lane group and its limits.
 */
export const KEPT: Readonly<
  Record<"slots" | "scratch" | "line" | "latents" | "latentsStride" | "group" | "limits", Gp>
> = {
  slots: r.rdi,
  scratch: r.r15,
  line: r.r14,
  latents: r.r8,
  latentsStride: r.r9,
  group: r.rbx,
  limits: r.r12,
};

/** What parts of the code are emitted with. */
export interface TiledCode {
  readonly a: X64;
  readonly tiles: TileUnit;
  readonly at: TiledLayout;
  /** Position of the block's first key. */
  readonly start: Memory;
}

/** A place in the scratch. */
export function inScratch(offset: number): Memory {
  return mem(KEPT.scratch, offset);
}

export function inGroup(offset: number): Memory {
  return mem(KEPT.group, offset);
}

export function constant({ at }: TiledCode, name: (typeof CONSTANTS)[number]): Memory {
  return inScratch(at.constants + 4 * CONSTANTS.indexOf(name));
}

/** A tile in rows of 64 bytes. */
export function tileAt(place: Memory): Memory {
  return mem(place.base, place.displacement, KEPT.line, 1);
}

/** any bits of `a` where `mask` has ones, beside those of dst. */
const OR_MASKED = 0xf8;

/** word = [upper half of low, upper half of high]; `mask` has the bits of upper halves. */
export function emitJoinUpper(a: X64, word: Vector, low: Vector, high: Vector, mask: Vector): void {
  a.v("vpsrld", [word, low, 16]);
  a.v("vpternlogd", [word, high, mask, OR_MASKED]);
}

/** x = x less its upper half, exactly. */
export function emitDropUpper(a: X64, x: Vector, mask: Vector, spare: Vector): void {
  a.v("vpandd", [spare, x, mask]);
  a.v("vsubps", [x, x, spare]);
}

/** The parts of two vectors as words, one after another; leaves nothing of either. */
export function emitSplitPair(
  a: X64,
  [low, high]: readonly [Vector, Vector],
  { mask, spare }: { readonly mask: Vector; readonly spare: Vector },
  store: (part: number, word: Vector) => void,
): void {
  for (let part = 0; part < PARTS; part++) {
    emitJoinUpper(a, spare, low, high, mask);
    store(part, spare);
    if (part + 1 === PARTS) return;
    emitDropUpper(a, low, mask, spare);
    emitDropUpper(a, high, mask, spare);
  }
}
