/**
 * @file What the parts of attention over AMX tiles share: its arguments, its scratch, registers.
 *
 * Queries are taken in stripes of 32, keys in blocks of 32. Queries of a stripe stand in lanes: a
 * key's scores are two vectors of 16, so nothing is ever summed across lanes but by a product.
 *
 *     rows     bf16 as they come, 64 bytes for 32 columns, zeros behind the last
 *     lanes    tiles [16 pairs of columns][16 rows]: rows as the right operand of their depth
 *     pairs    tiles [16 pairs of rows i, i + 16][16 columns]: rows as the right operand of a sum
 *              over rows
 *     columns  tiles [16 columns][32 rows]: rows turned, as the left operand
 */
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, type Memory, mem, r } from "../../codegen/x64/operands.ts";
import { slotIndex } from "../kernel.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";

/** Rows and columns of a tile's sums, and lanes of a vector. */
export const LANES = 16;
/** Queries of a stripe, keys of a block, columns of a tile of bf16. */
export const BLOCK = 32;
/** Of a row of a tile, and of a vector. */
export const LINE_BYTES = 64;
export const TILE_BYTES = 1024;
/** A key's scores, and words of a pair of keys: one vector for each half of a stripe. */
export const STRIPE_BYTES: number = 2 * LINE_BYTES;

const SLOTS = [
  "scratch",
  "seqLength",
  /** The stripe, and block, to begin with; those before stand packed from another call. */
  "firstRow",
  "scale",
  "scaleLog2",
  /** What the scaled scores' differences are cut off at, unscaled. */
  "least",
  "query",
  "queryStride",
  "key",
  "keyStride",
  "value",
  "keyRope",
  "keyRopeStride",
  "out",
  "outStride",
  "dQuery",
  "dQueryStride",
  "dKey",
  "dKeyStride",
  "dKeyRope",
  "dKeyRopeStride",
  /** Of the next head. */
  "askedRows",
  "askedQuery",
  "askedKey",
  "askedOut",
  "askedDQuery",
  "askedDKey",
  "askedDKeyRope",
  /** Of a round: how many stripes it takes, and the bytes of all keys' weights for one. */
  "roundStripes",
  "stripeBytes",
  "keys",
  "values",
  "keyColumns",
  "scores",
  "weights",
  "scoreGradients",
  "gradientWords",
  "sums",
  "pairs",
] as const;
/** Arguments: addresses, and strides in bytes. `out` is the gradient of the output in backward. */
export const TILED_AT: Record<(typeof SLOTS)[number], number> = slotIndex(SLOTS);
export const TILED_SLOTS: number = SLOTS.length;

/** Constants in the scratch, 32 bits each; c4 to c0 are the polynomial's coefficients. */
export const CONSTANTS = [
  "scale",
  "scaleLog2",
  "least",
  "shift",
  "c4",
  "c3",
  "c2",
  "c1",
  "c0",
  "half",
  "upper",
] as const;

/**
 * A round is some stripes whose sums over queries are taken together: its first query, stripes so
 * far, where the next one's weights, score gradients and pairs go; and the gradients of the block
 * of keys that is summed.
 */
export const ROUND = [
  "first",
  "stripes",
  "weights",
  "scoreGradients",
  "pairs",
  "dKey",
  "dKeyRope",
] as const;

/** Sizes that the code is made for, and where things stand in the scratch, in bytes. */
export interface TiledLayout {
  /** Columns, multiples of `LANES`. */
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
  /** Tiles of 32 columns that a query or key takes, and a value. */
  readonly keyTiles: number;
  readonly valueTiles: number;
  readonly configuration: number;
  readonly constants: number;
  /** Words to take from two rows for pairs of columns 0..15, and 16..31. */
  readonly pairing: number;
  /** 1 ÷ the sum of each query's weights. */
  readonly inverse: number;
  /** Rows of a stripe's queries or output gradients, or of a block's values. */
  readonly rows: number;
  readonly queryLanes: number;
  readonly gradientLanes: number;
  /** Results with queries in lanes: tiles [16 columns][half of the stripe]. */
  readonly part: number;
  /** Rows of the next head that are left to ask for, and where each kind of them stands. */
  readonly asked: number;
  /** Words of `ROUND`. */
  readonly round: number;
  /** Where begins what depends on the number of keys. */
  readonly end: number;
}

export function tiledLayout(nope: number, rope: number, value: number): TiledLayout {
  const keyTiles = floorDiv(nope + rope + BLOCK - 1, BLOCK);
  const valueTiles = floorDiv(value + BLOCK - 1, BLOCK);
  const mostTiles = Math.max(keyTiles, valueTiles);
  let next = 0;
  const take = (bytes: number): number => {
    const at = next;
    next += roundUp(bytes, LINE_BYTES);
    return at;
  };
  const places = {
    configuration: take(LINE_BYTES),
    constants: take(CONSTANTS.length * 4),
    pairing: take(2 * LINE_BYTES),
    inverse: take(BLOCK * 4),
    rows: take(BLOCK * mostTiles * LINE_BYTES),
    queryLanes: take(keyTiles * 2 * TILE_BYTES),
    gradientLanes: take(valueTiles * 2 * TILE_BYTES),
    part: take(mostTiles * 4 * TILE_BYTES),
    asked: take(2 * LINE_BYTES),
    round: take(ROUND.length * 8),
  };
  return { nope, rope, value, keyTiles, valueTiles, ...places, end: next };
}

/** Parts of the scratch that hold something of every key. */
export type KeyPlace =
  | ("keys" | "values" | "keyColumns" | "scores" | "weights" | "scoreGradients")
  | ("gradientWords" | "sums");

/** Their bytes for a block of keys; columns of values are tiles of the same size as their rows. */
export function blockBytes(at: TiledLayout): Readonly<Record<KeyPlace, number>> {
  return {
    keys: BLOCK * at.keyTiles * LINE_BYTES,
    values: BLOCK * at.valueTiles * LINE_BYTES,
    keyColumns: BLOCK * at.keyTiles * LINE_BYTES,
    scores: BLOCK * STRIPE_BYTES,
    weights: BLOCK * LINE_BYTES,
    scoreGradients: BLOCK * LINE_BYTES,
    gradientWords: BLOCK * LINE_BYTES,
    sums: BLOCK * (at.nope + at.rope + at.value) * 4,
  };
}

/** Bytes of a stripe's pairs: of queries, then of output gradients. */
export function pairsBytes({ keyTiles, valueTiles }: TiledLayout): number {
  return (keyTiles + valueTiles) * 2 * TILE_BYTES;
}

/** Registers that keep their meaning; `start` is the stripe's, or block's, first row. */
export const KEPT: Readonly<Record<"slots" | "scratch" | "line" | "start" | "rowsLeft", Gp>> = {
  slots: r.rdi,
  scratch: r.r15,
  line: r.r14,
  start: r.r12,
  /** Rows from `start` on. */
  rowsLeft: r.r13,
};

/** What parts of the code are emitted with. */
export interface TiledCode {
  readonly a: X64;
  readonly tiles: TileUnit;
  readonly at: TiledLayout;
}

/** A place in the scratch. */
export function inScratch(offset: number): Memory {
  return mem(KEPT.scratch, offset);
}

export function inRound({ at }: TiledCode, name: (typeof ROUND)[number]): Memory {
  return inScratch(at.round + 8 * ROUND.indexOf(name));
}

export function constant({ at }: TiledCode, name: (typeof CONSTANTS)[number]): Memory {
  return inScratch(at.constants + 4 * CONSTANTS.indexOf(name));
}

/** A tile in rows of 64 bytes. */
export function tileAt(place: Memory): Memory {
  return mem(place.base, place.displacement, KEPT.line, 1);
}

/** to = the address in slot `base` of row `start`, rows being `stride` (a register) apart. */
export function emitRowAddress(a: X64, to: Gp, base: number, stride: Gp): void {
  loadSlot(a, to, base);
  a.mov(r.rax, KEPT.start);
  a.imul(r.rax, stride);
  a.add(to, r.rax);
}

/** to = where block `start` begins in a part of the scratch of so many bytes a block. */
export function emitBlockAddress(a: X64, to: Gp, part: number, bytes: number): void {
  loadSlot(a, to, part);
  a.imul(r.rax, KEPT.start, floorDiv(bytes, BLOCK));
  a.add(to, r.rax);
}

/** All stripes, or blocks, from the first one that is asked for. */
export function emitEachBlock(a: X64, body: () => void): void {
  const next = a.label();
  loadSlot(a, KEPT.start, TILED_AT.firstRow);
  loadSlot(a, KEPT.rowsLeft, TILED_AT.seqLength);
  a.sub(KEPT.rowsLeft, KEPT.start);
  a.bind(next);
  body();
  a.add(KEPT.start, BLOCK);
  a.sub(KEPT.rowsLeft, BLOCK);
  a.j("g", next);
}
