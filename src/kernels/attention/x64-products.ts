/** @file The products of attention over AMX tiles, 32×32 sums at a time. */
import { floorDiv } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, type Memory, mem, r, tmm, zmm } from "../../codegen/x64/operands.ts";
import { emitTranspose16 } from "../matmul/x64-pack.ts";
import {
  BLOCK,
  blockBytes,
  emitRowAddress,
  inRound,
  inScratch,
  KEPT,
  LANES,
  LINE_BYTES,
  pairsBytes,
  STRIPE_BYTES,
  TILE_BYTES,
  TILED_AT,
  type TiledCode,
  tileAt,
} from "./x64-frame.ts";

/** Left tiles, then right ones; four sums stand before them. */
const [A0, A1, B0, B1] = [tmm(4), tmm(5), tmm(6), tmm(7)] as const;

/**
 * Vector arithmetic that rests long takes longer to come back, and stores of tiles wait for it
 * (`src/kernels/matmul/x64-tile-core.ts`): beside a block's products, what other parts of the code
 * left in a register is added to itself, for nobody.
 */
const IDLE_SUM = zmm(31);

function emitBesideProducts(a: X64): void {
  a.v("vaddps", [IDLE_SUM, IDLE_SUM, IDLE_SUM]);
}

/** Scores, or gradients of weights: a block's rows times a stripe's lanes, for all keys seen. */
export function emitScores(
  { a, tiles }: TiledCode,
  { rows, lanes, numTiles }: { readonly rows: number; readonly lanes: number; numTiles: number },
): void {
  const [from, stride, to, toStride, left] = [r.rsi, r.r8, r.rdx, r.r9, r.rcx];
  const rowBytes = numTiles * LINE_BYTES;
  loadSlot(a, from, rows);
  loadSlot(a, to, TILED_AT.scores);
  a.mov(stride, rowBytes);
  a.mov(toStride, STRIPE_BYTES);
  a.lea(left, mem(KEPT.start, BLOCK));
  a.countdown(left, BLOCK, () => {
    for (let sum = 0; sum < 4; sum++) tiles.tilezero(tmm(sum));
    for (let depth = 0; depth < numTiles; depth++) {
      const right = lanes + 2 * depth * TILE_BYTES;
      tiles.tileloadd(A0, mem(from, depth * LINE_BYTES, stride, 1));
      tiles.tileloadd(B0, tileAt(inScratch(right)));
      tiles.tdpbf16ps(tmm(0), A0, B0);
      tiles.tileloadd(B1, tileAt(inScratch(right + TILE_BYTES)));
      tiles.tdpbf16ps(tmm(1), A0, B1);
      tiles.tileloadd(A1, mem(from, LANES * rowBytes + depth * LINE_BYTES, stride, 1));
      tiles.tdpbf16ps(tmm(2), A1, B0);
      tiles.tdpbf16ps(tmm(3), A1, B1);
    }
    for (let sum = 0; sum < 4; sum++) {
      const at = floorDiv(sum, 2) * LANES * STRIPE_BYTES + (sum % 2) * LINE_BYTES;
      tiles.tilestored(mem(to, at, toStride, 1), tmm(sum));
    }
    emitBesideProducts(a);
    a.add(from, BLOCK * rowBytes);
    a.add(to, BLOCK * STRIPE_BYTES);
  });
}

/**
 * A stripe's sums over all keys seen, into `part`: columns, of `columns` each, times words of pairs
 * of keys. Rows of the result are columns, lanes queries.
 */
export function emitMix(
  { a, at, tiles }: TiledCode,
  of: { readonly columns: number; readonly words: number; readonly count: number },
): void {
  const [from, words, stride, left] = [r.rsi, r.rdx, r.r8, r.rcx];
  const numTiles = floorDiv(of.count + BLOCK - 1, BLOCK);
  a.mov(stride, STRIPE_BYTES);
  for (let column = 0; column < of.count; column += BLOCK) {
    const isPair = column + LANES < of.count;
    const place = floorDiv(column, LANES) * TILE_BYTES;
    loadSlot(a, from, of.columns);
    loadSlot(a, words, of.words);
    a.lea(left, mem(KEPT.start, BLOCK));
    for (let sum = 0; sum < (isPair ? 4 : 2); sum++) tiles.tilezero(tmm(sum));
    a.countdown(left, BLOCK, () => {
      tiles.tileloadd(A0, tileAt(mem(from, place)));
      tiles.tileloadd(B0, mem(words, 0, stride, 1));
      tiles.tdpbf16ps(tmm(0), A0, B0);
      tiles.tileloadd(B1, mem(words, LINE_BYTES, stride, 1));
      tiles.tdpbf16ps(tmm(1), A0, B1);
      if (isPair) {
        tiles.tileloadd(A1, tileAt(mem(from, place + TILE_BYTES)));
        tiles.tdpbf16ps(tmm(2), A1, B0);
        tiles.tdpbf16ps(tmm(3), A1, B1);
      }
      emitBesideProducts(a);
      a.add(from, 2 * numTiles * TILE_BYTES);
      a.add(words, BLOCK * LINE_BYTES);
    });
    for (let sum = 0; sum < (isPair ? 4 : 2); sum++) {
      tiles.tilestored(tileAt(inScratch(at.part + 2 * place + sum * TILE_BYTES)), tmm(sum));
    }
  }
}

/** `part` as rows of queries, those that exist, times their factors at `factors` if any. */
export function emitWriteRows(
  { a, at }: TiledCode,
  to: { readonly base: number; readonly stride: number; readonly count: number },
  factors: number | null,
): void {
  const [row, stride, first] = [r.rdx, r.r8, r.rsi];
  loadSlot(a, stride, to.stride);
  emitRowAddress(a, first, to.base, stride);
  for (let half = 0; half < 2; half++) {
    for (let column = 0; column < to.count; column += LANES) {
      const done = a.label();
      const place = at.part + (2 * floorDiv(column, LANES) + half) * TILE_BYTES;
      for (let line = 0; line < LANES; line++) {
        a.v("vmovups", [zmm(line), inScratch(place + line * LINE_BYTES)]);
      }
      emitTranspose16(a);
      a.mov(row, first);
      for (let query = 0; query < LANES; query++) {
        a.cmp(KEPT.rowsLeft, half * LANES + query);
        a.j("le", done);
        if (factors !== null) {
          a.v("vbroadcastss", [zmm(16), inScratch(factors + 4 * (half * LANES + query))]);
          a.v("vmulps", [zmm(query), zmm(query), zmm(16)]);
        }
        a.v("vmovups", [mem(row, column * 4), zmm(query)]);
        a.add(row, stride);
      }
      a.bind(done);
    }
    a.imul(r.rax, stride, LANES);
    a.add(first, r.rax);
  }
}

/** Tiles of a block's sums: content part of keys, values, RoPE part; two halves of 16 keys each. */
interface SumTiles {
  readonly first: number;
  readonly count: number;
  /** Where pairs for them stand among those of a stripe. */
  readonly pairs: number;
}

/**
 * Registers of the sums over queries: a block's sums; its weights and score gradients of the first
 * stripe that sees it, that stripe's pairs; bytes from a stripe's weights to the next one's.
 */
const SUM = {
  sums: r.rdx,
  weights: r.rsi,
  gradients: r.r9,
  pairs: r.r8,
  stripes: r.r10,
  stripeBytes: r.r11,
} as const;

/**
 * Gradients of values and keys: what a round's queries add for every key that they see. The last
 * round's sums may go to the outputs at once, if all blocks are whole.
 */
export function emitAddToSums(code: TiledCode, to: SumsTo): void {
  const { a, at } = code;
  const left = r.rax;
  const [nope, rope, value] = [at.nope / LANES, at.rope / LANES, at.value / LANES];
  const ofValues = at.keyTiles * 2 * TILE_BYTES;
  const values: SumTiles = { first: nope, count: value, pairs: ofValues };
  const content: SumTiles = { first: 0, count: nope, pairs: 0 };
  const positions: SumTiles = { first: nope + value, count: rope, pairs: nope * TILE_BYTES };
  const emitBlock = (isFirst: boolean): void => {
    emitAddTiles(code, SUM.weights, values, { isFirst, to });
    emitAddTiles(code, SUM.gradients, content, { isFirst, to });
    emitAddTiles(code, SUM.gradients, positions, { isFirst, to });
    emitBesideProducts(a);
    for (const rows of [SUM.weights, SUM.gradients]) a.add(rows, BLOCK * LINE_BYTES);
    a.add(SUM.sums, blockBytes(at).sums);
    if (to === "outputs") emitNextOutputs(code);
  };
  loadSlot(a, SUM.sums, TILED_AT.sums);
  loadSlot(a, SUM.weights, TILED_AT.weights);
  loadSlot(a, SUM.gradients, TILED_AT.scoreGradients);
  loadSlot(a, SUM.pairs, TILED_AT.pairs);
  loadSlot(a, SUM.stripeBytes, TILED_AT.stripeBytes);
  for (const { name } of OUTPUTS) {
    loadSlot(a, r.rax, TILED_AT[name]);
    a.mov(inRound(code, name), r.rax);
  }
  a.mov(SUM.stripes, inRound(code, "stripes"));
  a.mov(left, inRound(code, "first"));
  a.countdown(left, BLOCK, () => emitBlock(false));
  // No stripe before the round sees its keys, and none of the round those of a later one.
  a.countdown(SUM.stripes, 1, () => {
    emitBlock(true);
    for (const rows of [SUM.weights, SUM.gradients]) a.add(rows, SUM.stripeBytes);
    a.add(SUM.pairs, pairsBytes(at));
  });
}

type SumsTo = "sums" | "outputs";

const OUTPUTS = [
  { name: "dKey", stride: TILED_AT.dKeyStride },
  { name: "dKeyRope", stride: TILED_AT.dKeyRopeStride },
] as const;

function emitNextOutputs(code: TiledCode): void {
  const { a } = code;
  for (const { name, stride } of OUTPUTS) {
    loadSlot(a, r.rcx, stride);
    a.shl(r.rcx, Math.log2(BLOCK));
    a.add(inRound(code, name), r.rcx);
  }
}

/** Tiles of a block's sums, two by two: stripe by stripe, `rows` of their own times their pairs. */
function emitAddTiles(
  code: TiledCode,
  rows: Gp,
  { first, count, pairs }: SumTiles,
  { isFirst, to }: { readonly isFirst: boolean; readonly to: SumsTo },
): void {
  const { a, at, tiles } = code;
  const [left, right, stripesLeft] = [r.rbx, r.rbp, r.rcx];
  for (let tile = 0; tile < count; tile += 2) {
    const numRight = Math.min(2, count - tile);
    const place = (sum: number): Memory =>
      tileAt(mem(SUM.sums, (2 * (first + tile) + sum) * TILE_BYTES));
    for (let sum = 0; sum < 2 * numRight; sum++) {
      if (isFirst) tiles.tilezero(tmm(sum));
      else tiles.tileloadd(tmm(sum), place(sum));
    }
    a.mov(left, rows);
    a.lea(right, mem(SUM.pairs, pairs + tile * TILE_BYTES));
    a.mov(stripesLeft, SUM.stripes);
    a.countdown(stripesLeft, 1, () => {
      tiles.tileloadd(A0, tileAt(mem(left)));
      tiles.tileloadd(A1, tileAt(mem(left, TILE_BYTES)));
      for (let sum = 0; sum < 2 * numRight; sum += 2) {
        const loaded = sum === 0 ? B0 : B1;
        tiles.tileloadd(loaded, tileAt(mem(right, (sum / 2) * TILE_BYTES)));
        tiles.tdpbf16ps(tmm(sum), A0, loaded);
        tiles.tdpbf16ps(tmm(sum + 1), A1, loaded);
      }
      a.add(left, SUM.stripeBytes);
      a.add(right, pairsBytes(at));
    });
    if (to === "outputs") emitStoreOutputs(code, first + tile, numRight);
    else for (let sum = 0; sum < 2 * numRight; sum++) tiles.tilestored(place(sum), tmm(sum));
  }
}

/** The sums of one or two neighbouring tiles to their rows of the outputs. */
function emitStoreOutputs(code: TiledCode, tile: number, count: number): void {
  const { a, at, tiles } = code;
  const numKeyTiles = (at.nope + at.value) / LANES;
  const { name, stride } = OUTPUTS[tile < numKeyTiles ? 0 : 1];
  const column = tile < numKeyTiles ? tile : tile - numKeyTiles;
  const [row, rowStride, half] = [r.rbx, r.rcx, r.rbp];
  a.mov(row, inRound(code, name));
  loadSlot(a, rowStride, stride);
  a.imul(half, rowStride, LANES);
  a.add(half, row);
  for (let sum = 0; sum < 2 * count; sum++) {
    const base = sum % 2 === 0 ? row : half;
    const at = (column + floorDiv(sum, 2)) * LINE_BYTES;
    tiles.tilestored(mem(base, at, rowStride, 1), tmm(sum));
  }
}

/** The sums of all blocks to the gradients of keys and values. */
export function emitWriteSums({ a, at }: TiledCode): void {
  const [sums, left, inBlock] = [r.rsi, r.rcx, r.rbp];
  const [key, keyStride, rope, ropeStride] = [r.rdx, r.r8, r.r9, r.r10];
  const numKeyTiles = (at.nope + at.value) / LANES;
  const numRopeTiles = at.rope / LANES;
  loadSlot(a, sums, TILED_AT.sums);
  loadSlot(a, key, TILED_AT.dKey);
  loadSlot(a, keyStride, TILED_AT.dKeyStride);
  loadSlot(a, rope, TILED_AT.dKeyRope);
  loadSlot(a, ropeStride, TILED_AT.dKeyRopeStride);
  loadSlot(a, left, TILED_AT.seqLength);
  a.countdown(left, BLOCK, () => {
    a.mov(inBlock, BLOCK);
    a.cmp(left, inBlock);
    a.cmov("l", inBlock, left);
    a.countdown(inBlock, 1, () => {
      for (let tile = 0; tile < numKeyTiles + numRopeTiles; tile++) {
        const vector = zmm(tile % 8);
        const to =
          tile < numKeyTiles
            ? mem(key, tile * LINE_BYTES)
            : mem(rope, (tile - numKeyTiles) * LINE_BYTES);
        a.v("vmovups", [vector, mem(sums, 2 * tile * TILE_BYTES)]);
        a.v("vmovups", [to, vector]);
      }
      a.add(sums, LINE_BYTES);
      a.add(key, keyStride);
      a.add(rope, ropeStride);
    });
    a.add(sums, blockBytes(at).sums - BLOCK * LINE_BYTES);
  });
}
