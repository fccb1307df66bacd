/**
 * @file Latent attention from matrix products and row programs: one tile a task.
 *
 *     for each segment of 512 keys:   scores = query · [latents | keys]ᵀ, block by block   (NT)
 *         part = exp(scores − top) · latents, block by block, in rising order          (NN)
 *         out = out · e^(top_before − top_new) + part · e^(top − top_new)
 *     out = out / total
 *
 * Segments and blocks are cut at fixed positions, so the order of every sum depends on the number
 * of keys alone, and scratch does not grow with the context. Blocks of bf16 are widened first:
 * products are in f32 whatever the cache is stored in.
 *
 * Masked exponentials are exact zeros, and 0 · NaN is NaN: a latent that is not finite would leak
 * into rows of its tile that do not see it. The tile's last row sees all, so it tells whether there
 * is any; such a segment's rows are multiplied one by one, each by the latents it sees. That
 * changes no bit of any other row: zeros appended along the depth of a product never do.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import type { BlockMultiplier } from "../matmul/block-multiplier.ts";
import { LATENT_ATTENTION_AT as AT, LATENT_BLOCK_TOKENS, TILE_ROWS_MAX } from "./contract.ts";
import { type LatentTile, latentTile } from "./tile.ts";

/** What the body is built from: this thread's f32 products and row kernels of one target. */
export interface LatentAttentionParts {
  readonly nn: BlockMultiplier;
  readonly nt: BlockMultiplier;
  /** Bodies of programs.ts. */
  readonly exponentials: KernelBody;
  readonly join: KernelBody;
  readonly scale: KernelBody;
  /** castRows/bf16.f32; null if the latents are f32. */
  readonly widen: KernelBody | null;
}

/** Keys whose scores exist at once. Part of the result: it cuts the sums. */
export const SEGMENT_KEYS: number = 8 * LATENT_BLOCK_TOKENS;
const BLOCKS_PER_SEGMENT = SEGMENT_KEYS / LATENT_BLOCK_TOKENS;
const ROW_BYTES = 4 * TILE_ROWS_MAX;

/** Byte offsets of the parts of the scratch. */
interface Scratch {
  readonly limits: number;
  readonly top: number;
  readonly total: number;
  readonly keep: number;
  readonly add: number;
  readonly scores: number;
  readonly part: number;
  readonly widened: number;
}

function layOut(span: Span, latent: number): Scratch {
  const perRow = (index: number): number => span.byteOffset + index * ROW_BYTES;
  const scores = perRow(5);
  const part = scores + SEGMENT_KEYS * ROW_BYTES;
  const widened = part + latent * ROW_BYTES;
  const end = widened + latent * LATENT_BLOCK_TOKENS * 4;
  assert(
    end <= span.byteOffset + span.byteLength,
    `latentAttention: latents of ${latent} columns do not fit the scratch`,
  );
  const [limits, top, total, keep, add] = [perRow(0), perRow(1), perRow(2), perRow(3), perRow(4)];
  return { limits, top, total, keep, add, scores, part, widened };
}

/** A matrix in device memory: byte offset of its first element, row stride in elements. */
type Place = readonly [offset: number, rowStride: number];

/** The body for f32 or bf16 rows. `span` is scratch that the products do not use. */
export function latentAttentionBody(
  parts: LatentAttentionParts,
  context: ThreadContext,
  span: Span,
): KernelBody {
  return (slots, firstTask, endTask) => {
    for (let task = firstTask; task < endTask; task++) {
      const tile = latentTile(slots, context.memory, task);
      new TileAttention(parts, context, slots, tile, span).run();
    }
  };
}

class TileAttention {
  readonly #parts: LatentAttentionParts;
  readonly #context: ThreadContext;
  readonly #tile: LatentTile;
  readonly #scratch: Scratch;
  readonly #slots: Float64Array;
  readonly #latent: number;
  readonly #key: number;
  readonly #out: Place;
  readonly #totals: Float64Array<ArrayBuffer>;
  readonly #tops: Float64Array<ArrayBuffer>;

  constructor(
    parts: LatentAttentionParts,
    context: ThreadContext,
    slots: Float64Array,
    tile: LatentTile,
    span: Span,
  ) {
    this.#parts = parts;
    this.#context = context;
    this.#tile = tile;
    this.#slots = slots;
    this.#latent = slot(slots, AT.latent);
    this.#key = slot(slots, AT.key);
    this.#scratch = layOut(span, this.#latent);
    const outStride = slot(slots, AT.outRowStride);
    this.#out = [slot(slots, AT.outOffset) + tile.firstRow * outStride * 4, outStride];
    this.#totals = new Float64Array(tile.numRows);
    this.#tops = new Float64Array(tile.numRows);
  }

  run(): void {
    const { numRows } = this.#tile;
    const keysMost = this.#tile.keysOf(numRows - 1);
    for (let start = 0; start < keysMost; start += SEGMENT_KEYS) {
      const numKeys = Math.min(SEGMENT_KEYS, keysMost - start);
      this.#score(start, numKeys);
      const part: Place = start === 0 ? this.#out : [this.#scratch.part, this.#latent];
      this.#mix(start, numKeys, part);
      this.#join(start, part);
    }
    const factors = this.#floats(this.#scratch.keep);
    for (let row = 0; row < numRows; row++) factors[row] = 1 / this.#totals[row]!;
    this.#launchRows(this.#parts.scale, [this.#out, [this.#scratch.keep, 1]], this.#latent);
  }

  /** Exponentials of a segment's scores, with each row's largest score and sum. */
  #score(start: number, numKeys: number): void {
    const tile = this.#tile;
    const scratch = this.#scratch;
    for (let first = 0; first < numKeys; first += LATENT_BLOCK_TOKENS) {
      this.#scoreBlock(start + first, Math.min(LATENT_BLOCK_TOKENS, numKeys - first), first);
    }
    const limits = this.#context.memory.i32;
    for (let row = 0; row < tile.numRows; row++) {
      limits[scratch.limits / 4 + row] = Math.min(numKeys, Math.max(0, tile.keysOf(row) - start));
    }
    const operands = [
      [scratch.scores, SEGMENT_KEYS],
      [scratch.limits, 1],
      [scratch.top, 1],
      [scratch.total, 1],
    ] as const;
    this.#launchRows(this.#parts.exponentials, operands, numKeys, slot(this.#slots, AT.scale));
  }

  /** Scores of the block that begins at `position`, to column `column`. */
  #scoreBlock(position: number, numKeys: number, column: number): void {
    const { firstRow, numRows } = this.#tile;
    const { nt } = this.#parts;
    const queryStride = slot(this.#slots, AT.queryRowStride);
    const query = slot(this.#slots, AT.queryOffset) + firstRow * queryStride * 4;
    const out = this.#scratch.scores + column * 4;
    const index = position / LATENT_BLOCK_TOKENS;
    const [latents, latentStride] = this.#latents(index, numKeys);
    const [latent, key] = [this.#latent, this.#key];
    nt(
      query,
      queryStride,
      latents,
      latentStride,
      out,
      SEGMENT_KEYS,
      numRows,
      numKeys,
      latent,
      false,
    );
    const keyStride = slot(this.#slots, AT.keysRowStride);
    const firstKey = this.#tile.blockOf(index) * LATENT_BLOCK_TOKENS * keyStride;
    const keys = slot(this.#slots, AT.keysOffset) + firstKey * 4;
    const keyQuery = query + latent * 4;
    nt(keyQuery, queryStride, keys, keyStride, out, SEGMENT_KEYS, numRows, numKeys, key, true);
  }

  /** part = exponentials · latents, no row touched by latents that it does not see. */
  #mix(start: number, numKeys: number, part: Place): void {
    const { numRows } = this.#tile;
    this.#multiply(start, 0, numRows, numKeys, part);
    const lastRow = this.#floats(part[0] + (numRows - 1) * part[1] * 4, this.#latent);
    if (lastRow.every(Number.isFinite)) return;
    for (let row = 0; row < numRows; row++) {
      const keys = Math.min(numKeys, this.#tile.keysOf(row) - start);
      if (keys > 0) this.#multiply(start, row, 1, keys, part);
      else this.#floats(part[0] + row * part[1] * 4, this.#latent).fill(0);
    }
  }

  #multiply(start: number, row: number, numRows: number, numKeys: number, part: Place): void {
    const out = part[0] + row * part[1] * 4;
    const weights = this.#scratch.scores + row * SEGMENT_KEYS * 4;
    const { nn } = this.#parts;
    for (
      let index = 0;
      index < Math.min(BLOCKS_PER_SEGMENT, ceilDiv(numKeys, LATENT_BLOCK_TOKENS));
      index++
    ) {
      const first = index * LATENT_BLOCK_TOKENS;
      const keys = Math.min(LATENT_BLOCK_TOKENS, numKeys - first);
      const [rows, stride] = this.#latents(start / LATENT_BLOCK_TOKENS + index, keys);
      const a = weights + first * 4;
      nn(a, SEGMENT_KEYS, rows, stride, out, part[1], numRows, this.#latent, keys, index > 0);
    }
  }

  /** Add a segment's part to what the segments before it gave. */
  #join(start: number, part: Place): void {
    const scratch = this.#scratch;
    const [tops, totals] = [this.#floats(scratch.top), this.#floats(scratch.total)];
    const [keep, add] = [this.#floats(scratch.keep), this.#floats(scratch.add)];
    for (let row = 0; row < this.#tile.numRows; row++) {
      if (start === 0) {
        this.#tops[row] = tops[row]!;
        this.#totals[row] = totals[row]!;
        continue;
      }
      const isSeen = this.#tile.keysOf(row) > start;
      const before = this.#tops[row]!;
      const top = isSeen ? Math.max(before, tops[row]!) : before;
      keep[row] = isSeen ? Math.exp(before - top) : 1;
      add[row] = isSeen ? Math.exp(tops[row]! - top) : 0;
      this.#tops[row] = top;
      const added = isSeen ? totals[row]! * add[row]! : 0;
      this.#totals[row] = this.#totals[row]! * keep[row]! + added;
    }
    if (start === 0) return;
    const operands = [this.#out, part, [scratch.keep, 1], [scratch.add, 1]] as const;
    this.#launchRows(this.#parts.join, operands, this.#latent);
  }

  /** The first `numRows` latents of a block of the sequence, as f32. */
  #latents(index: number, numRows: number): Place {
    const stride = slot(this.#slots, AT.latentsRowStride);
    const first = this.#tile.blockOf(index) * LATENT_BLOCK_TOKENS * stride;
    const { widen } = this.#parts;
    const offset = slot(this.#slots, AT.latentsOffset);
    if (widen === null) return [offset + first * 4, stride];
    const [to, latent] = [this.#scratch.widened, this.#latent];
    const operands = [offset + first * 2, stride, to, latent];
    widen(Float64Array.of(numRows, latent, numRows, ...operands), 0, 1);
    return [to, latent];
  }

  #launchRows(
    body: KernelBody,
    operands: readonly Place[],
    columns: number,
    ...scalars: number[]
  ): void {
    const { numRows } = this.#tile;
    body(Float64Array.of(numRows, columns, numRows, ...operands.flat(), ...scalars), 0, 1);
  }

  #floats(offset: number, count: number = this.#tile.numRows): Float32Array {
    return this.#context.memory.f32.subarray(offset / 4, offset / 4 + count);
  }
}
