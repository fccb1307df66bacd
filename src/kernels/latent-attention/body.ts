/**
 * @file Latent attention from matrix products and row programs: one tile a task.
 *
 *     for each segment of 512 keys:   rows = [latents | keys] of the segment, gathered and widened
 *         scores = query · rowsᵀ  (NT),   part = exp(scores − top) · rows[:, :C]  (NN)
 *         out = out · e^(top_before − top_new) + part · e^(top − top_new)
 *     out = out / total
 *
 * Segments are cut at fixed positions, so the order of every sum depends on the number of keys
 * alone, and scratch does not grow with the context. Products are in f32 whatever the cache is
 * stored in.
 *
 * Masked exponentials are exact zeros, and 0 · NaN is NaN: a latent that is not finite would leak
 * into rows of its tile that do not see it. The tile's last row sees all, so it tells whether there
 * is any; such a segment's rows are multiplied one by one, each by the latents it sees. That
 * changes no bit of any other row: zeros appended along the depth of a product never do.
 */
import { assert } from "../../base/errors.ts";
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
  /** gatherRows of latents and of keys to f32. */
  readonly gatherLatents: KernelBody;
  readonly gatherKeys: KernelBody;
}

/** Keys whose scores exist at once. Part of the result: it cuts the sums. */
export const SEGMENT_KEYS: number = 8 * LATENT_BLOCK_TOKENS;
const ROW_BYTES = 4 * TILE_ROWS_MAX;
/** Sizes, four operands and a scalar. */
const ROW_SLOTS_MAX = 12;

/** Byte offsets of the parts of the scratch. */
interface Scratch {
  readonly limits: number;
  readonly top: number;
  readonly total: number;
  readonly keep: number;
  readonly add: number;
  readonly scores: number;
  readonly part: number;
  /** Places of a segment's keys among the rows of all blocks. */
  readonly index: number;
  readonly rows: number;
}

function layOut(span: Span, latent: number, key: number): Scratch {
  const perRow = (index: number): number => span.byteOffset + index * ROW_BYTES;
  const scores = perRow(5);
  const part = scores + SEGMENT_KEYS * ROW_BYTES;
  const index = part + latent * ROW_BYTES;
  const rows = index + SEGMENT_KEYS * 4;
  const end = rows + SEGMENT_KEYS * (latent + key) * 4;
  assert(
    end <= span.byteOffset + span.byteLength,
    `latentAttention: latents of ${latent} and keys of ${key} columns do not fit the scratch`,
  );
  const [limits, top, total, keep, add] = [perRow(0), perRow(1), perRow(2), perRow(3), perRow(4)];
  return { limits, top, total, keep, add, scores, part, index, rows };
}

/** A matrix in device memory: byte offset of its first element, row stride in elements. */
type Place = readonly [offset: number, rowStride: number];

/** The body for f32 or bf16 rows. `span` is scratch that the products do not use. */
export function latentAttentionBody(
  parts: LatentAttentionParts,
  context: ThreadContext,
  span: Span,
): KernelBody {
  // One for all tiles of the thread: they come one after another.
  const rowSlots = new Float64Array(ROW_SLOTS_MAX);
  return (slots, firstTask, endTask) => {
    for (let task = firstTask; task < endTask; task++) {
      const tile = latentTile(slots, context.memory, task);
      new TileAttention({ parts, context, slots, tile, span, rowSlots }).run();
    }
  };
}

interface TileCall {
  readonly parts: LatentAttentionParts;
  readonly context: ThreadContext;
  readonly slots: Float64Array;
  readonly tile: LatentTile;
  readonly span: Span;
  /** Where the slots of row kernels are written. */
  readonly rowSlots: Float64Array;
}

class TileAttention {
  readonly #rowSlots: Float64Array;
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

  constructor({ parts, context, slots, tile, span, rowSlots }: TileCall) {
    this.#parts = parts;
    this.#rowSlots = rowSlots;
    this.#context = context;
    this.#tile = tile;
    this.#slots = slots;
    this.#latent = slot(slots, AT.latent);
    this.#key = slot(slots, AT.key);
    this.#scratch = layOut(span, this.#latent, this.#key);
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
      this.#gather(start, numKeys);
      this.#score(start, numKeys);
      const part: Place = start === 0 ? this.#out : [this.#scratch.part, this.#latent];
      this.#mix(start, numKeys, part);
      this.#join(start, part);
    }
    const factors = this.#floats(this.#scratch.keep);
    for (let row = 0; row < numRows; row++) factors[row] = 1 / this.#totals[row]!;
    this.#launchRows(this.#parts.scale, [this.#out, [this.#scratch.keep, 1]], this.#latent);
  }

  /** A segment's latents and keys, side by side. */
  #gather(start: number, numKeys: number): void {
    const { index, rows } = this.#scratch;
    const places = this.#context.memory.i32;
    for (let at = 0; at < numKeys; at += LATENT_BLOCK_TOKENS) {
      const block = this.#tile.blockOf((start + at) / LATENT_BLOCK_TOKENS) * LATENT_BLOCK_TOKENS;
      const count = Math.min(LATENT_BLOCK_TOKENS, numKeys - at);
      for (let row = 0; row < count; row++) places[index / 4 + at + row] = block + row;
    }
    const slots = this.#slots;
    const latents = [slot(slots, AT.latentsOffset), slot(slots, AT.latentsRowStride)] as const;
    const keys = [slot(slots, AT.keysOffset), slot(slots, AT.keysRowStride)] as const;
    const width = this.#latent + this.#key;
    const { gatherLatents, gatherKeys } = this.#parts;
    const from: Place = [index, 1];
    const [latentsTo, keysTo]: Place[] = [
      [rows, width],
      [rows + this.#latent * 4, width],
    ];
    const into = this.#rowSlots;
    runRows(gatherLatents, into, [numKeys, this.#latent], [latents, from, latentsTo!]);
    runRows(gatherKeys, into, [numKeys, this.#key], [keys, from, keysTo!]);
  }

  /** Exponentials of a segment's scores, with each row's largest score and sum. */
  #score(start: number, numKeys: number): void {
    const tile = this.#tile;
    const scratch = this.#scratch;
    const { nt } = this.#parts;
    const queryStride = slot(this.#slots, AT.queryRowStride);
    const query = slot(this.#slots, AT.queryOffset) + tile.firstRow * queryStride * 4;
    const width = this.#latent + this.#key;
    const { numRows } = tile;
    const { rows, scores } = scratch;
    nt(query, queryStride, rows, width, scores, SEGMENT_KEYS, numRows, numKeys, width, false);
    const limits = this.#context.memory.i32;
    for (let row = 0; row < numRows; row++) {
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

  /** part = exponentials · latents, no row touched by latents that it does not see. */
  #mix(start: number, numKeys: number, part: Place): void {
    const { numRows } = this.#tile;
    this.#multiply(0, numRows, numKeys, part);
    if (this.#isFinite(part[0] + (numRows - 1) * part[1] * 4)) return;
    for (let row = 0; row < numRows; row++) {
      const keys = Math.min(numKeys, this.#tile.keysOf(row) - start);
      if (keys > 0) this.#multiply(row, 1, keys, part);
      else this.#floats(part[0] + row * part[1] * 4, this.#latent).fill(0);
    }
  }

  /** Whether a row of the output at a byte offset is. */
  #isFinite(offset: number): boolean {
    const values = this.#context.memory.f32;
    const first = offset / 4;
    for (let at = first; at < first + this.#latent; at++) {
      if (!Number.isFinite(values[at]!)) return false;
    }
    return true;
  }

  #multiply(row: number, numRows: number, numKeys: number, part: Place): void {
    const out = part[0] + row * part[1] * 4;
    const weights = this.#scratch.scores + row * SEGMENT_KEYS * 4;
    const { rows } = this.#scratch;
    const latent = this.#latent;
    const [width, stride] = [latent + this.#key, part[1]];
    const { nn } = this.#parts;
    nn(weights, SEGMENT_KEYS, rows, width, out, stride, numRows, latent, numKeys, false);
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

  #launchRows(body: KernelBody, operands: readonly Place[], columns: number, scalar = 0): void {
    runRows(body, this.#rowSlots, [this.#tile.numRows, columns], operands, scalar);
  }

  #floats(offset: number, count: number = this.#tile.numRows): Float32Array {
    return this.#context.memory.f32.subarray(offset / 4, offset / 4 + count);
  }
}

/** A row kernel over all of a matrix, as one task. */
function runRows(
  body: KernelBody,
  slots: Float64Array,
  [rows, columns]: readonly [number, number],
  operands: readonly Place[],
  scalar = 0,
): void {
  slots[0] = rows;
  slots[1] = columns;
  slots[2] = rows;
  let at = 3;
  for (let index = 0; index < operands.length; index++) {
    const operand = operands[index]!;
    slots[at++] = operand[0];
    slots[at++] = operand[1];
  }
  slots[at] = scalar;
  body(slots, 0, 1);
}
