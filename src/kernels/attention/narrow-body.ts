/**
 * @file Causal attention over bf16 products: what body.ts does, with operands rounded to bf16.
 *
 * Keys (content and RoPE part side by side, so that scores are one product) and values of a head
 * are rounded once a task, queries and output gradients once a block of queries. Scores, softmax,
 * gradients of weights and all sums are f32. Weights (program.ts: probabilities before the division
 * by their sum) and score gradients are rounded for the products that follow; the division is done
 * on the products' f32 results. Scratch of a block holds one matrix of f32 (scores, then gradients
 * of weights) and one of bf16 (weights, then gradients of scores).
 */
import { assert } from "../../base/errors.ts";
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";
import { mixValues, multiply, type QueryBlock, rowOf } from "./query-blocks.ts";

/** This thread's bf16 products and row kernels of one target. */
export interface NarrowAttentionParts {
  readonly products: Readonly<Record<Transposition, BlockMultiplier>>;
  /** Queries taken at once; larger blocks compute more scores that are then masked. */
  readonly queryBlock: number;
  /** castRows/f32.bf16. */
  readonly cast: KernelBody;
  /** Of the programs in program.ts. */
  readonly weights: KernelBody;
  readonly scoreGradients: KernelBody;
  readonly scaleRows: KernelBody;
  readonly scaleRowsToBf16: KernelBody;
}

const FLOAT_BYTES = 4;
const NARROW_BYTES = 2;
/** Rows start on cache lines, as f32 and as bf16. */
const STRIDE_MULTIPLE = 32;

/** Where a task's rounded operands and one block's scores stand in the scratch. */
interface Layout {
  readonly limits: number;
  /** 1 ÷ the sum of each row's weights. */
  readonly inverse: number;
  readonly key: Place;
  readonly values: Place;
  readonly query: Place;
  readonly dOut: Place;
  /** f32 */
  readonly scores: Place;
  /** bf16 */
  readonly weights: Place;
  readonly queryBlock: number;
}

function layOut(span: Span, mostQueries: number, task: HeadTask): Layout {
  const { seqLength, nope, rope, value } = task;
  let next = span.byteOffset;
  const take = (bytes: number): number => {
    const offset = next;
    next += roundUp(bytes, 64);
    return offset;
  };
  const rounded = (rows: number, columns: number): Place => {
    const rowStride = roundUp(columns, 2);
    return { offset: take(rows * rowStride * NARROW_BYTES), rowStride };
  };
  const limits = take(mostQueries * 4);
  const inverse = take(mostQueries * 4);
  const key = rounded(seqLength, nope + rope);
  const values = rounded(seqLength, value);
  const query = rounded(mostQueries, nope + rope);
  const dOut = rounded(mostQueries, value);
  const rowStride = roundUp(seqLength, STRIDE_MULTIPLE);
  const left = span.byteOffset + span.byteLength - next;
  const queryBlock = Math.min(
    mostQueries,
    floorDiv(left, rowStride * (FLOAT_BYTES + NARROW_BYTES)),
  );
  assert(queryBlock >= 1, `attention: a sequence of ${seqLength} does not fit the scratch`);
  const scores = { offset: take(queryBlock * rowStride * FLOAT_BYTES), rowStride };
  const weights = { offset: take(queryBlock * rowStride * NARROW_BYTES), rowStride };
  return { limits, inverse, key, values, query, dOut, scores, weights, queryBlock };
}

/** One head of one sequence on one thread, block by block. */
class NarrowHead {
  readonly #parts: NarrowAttentionParts;
  readonly #context: ThreadContext;
  readonly #task: HeadTask;
  readonly #at: Layout;
  readonly #slots: Float64Array;

  constructor(
    parts: NarrowAttentionParts,
    context: ThreadContext,
    task: HeadTask,
    span: Span,
    slots: Float64Array,
  ) {
    this.#parts = parts;
    this.#context = context;
    this.#task = task;
    this.#at = layOut(span, parts.queryBlock, task);
    this.#slots = slots;
    const { seqLength, nope, rope, value } = task;
    const { key, values } = this.#at;
    this.#round(task.kNope, key, seqLength, nope);
    const ropeOffset = key.offset + nope * NARROW_BYTES;
    this.#round(task.keyRope, { ...key, offset: ropeOffset }, seqLength, rope);
    this.#round(task.values, values, seqLength, value);
  }

  forward(): void {
    const { seqLength, out, value } = this.#task;
    const { queryBlock, weights, values } = this.#at;
    for (let start = 0; start < seqLength; start += queryBlock) {
      const rows = Math.min(queryBlock, seqLength - start);
      const block = { start, rows, keys: start + rows };
      const blockOut = rowOf(out, start, FLOAT_BYTES);
      this.#computeWeights(block);
      mixValues(block, {
        nn: this.#parts.products.nn,
        floats: this.#context.memory.f32,
        probabilities: weights,
        values,
        valueColumns: value,
        out: blockOut,
        bytes: NARROW_BYTES,
      });
      this.#scaleRows(this.#parts.scaleRows, blockOut, blockOut, rows, value);
    }
  }

  /** From the last block, which reaches all keys and overwrites, to the first. */
  backward(): void {
    const { seqLength } = this.#task;
    const { queryBlock } = this.#at;
    const lastStart = floorDiv(seqLength - 1, queryBlock) * queryBlock;
    for (let start = lastStart; start >= 0; start -= queryBlock) {
      const rows = Math.min(queryBlock, seqLength - start);
      this.#backwardBlock({ start, rows, keys: start + rows }, start < lastStart);
    }
  }

  #backwardBlock(block: QueryBlock, accumulate: boolean): void {
    const { nn, nt, tn } = this.#parts.products;
    const { nope, rope, value, scale, ...task } = this.#task;
    const { key, values, query, dOut, scores, weights, inverse } = this.#at;
    const { start, rows, keys } = block;
    this.#computeWeights(block);
    const blockDOut = rowOf(task.dOut, start, FLOAT_BYTES);
    this.#scaleRows(this.#parts.scaleRowsToBf16, blockDOut, dOut, rows, value);
    multiply(tn, weights, dOut, task.dValues, { m: keys, n: value, k: rows, accumulate });
    multiply(nt, dOut, values, scores, { m: rows, n: keys, k: value });
    const places = [weights.offset, weights.rowStride, scores.offset, scores.rowStride];
    this.#run(this.#parts.scoreGradients, block, [...places, inverse, 1, scale]);
    // A query's gradient has its two parts side by side, a key's stand apart.
    const dQ = rowOf(task.dQNope, start, FLOAT_BYTES);
    multiply(nn, weights, key, dQ, { m: rows, n: nope + rope, k: keys });
    const ropeOfQuery = { ...query, offset: query.offset + nope * NARROW_BYTES };
    const keySize = { m: keys, k: rows, accumulate };
    multiply(tn, weights, query, task.dKNope, { ...keySize, n: nope });
    multiply(tn, weights, ropeOfQuery, task.dKeyRope, { ...keySize, n: rope });
  }

  #computeWeights(block: QueryBlock): void {
    const { qNope, nope, rope, scale } = this.#task;
    const { limits, inverse, key, query, scores, weights } = this.#at;
    const { start, rows, keys } = block;
    this.#round(rowOf(qNope, start, FLOAT_BYTES), query, rows, nope + rope);
    multiply(this.#parts.products.nt, query, key, scores, { m: rows, n: keys, k: nope + rope });
    const words = this.#context.memory.i32;
    for (let row = 0; row < rows; row++) words[limits / 4 + row] = start + row + 1;
    const places = [limits, 1, weights.offset, weights.rowStride, inverse, 1];
    const operands = [scores.offset, scores.rowStride, ...places, scale * Math.LOG2E];
    this.#run(this.#parts.weights, block, operands);
  }

  #run(body: KernelBody, { rows, keys }: QueryBlock, operands: readonly number[]): void {
    this.#slots.set([rows, keys, rows, ...operands]);
    body(this.#slots, 0, 1);
  }

  /** to = from / the sums of the rows' weights. */
  #scaleRows(body: KernelBody, from: Place, to: Place, rows: number, columns: number): void {
    const places = [from.offset, from.rowStride, this.#at.inverse, 1, to.offset, to.rowStride];
    this.#slots.set([rows, columns, rows, ...places]);
    body(this.#slots, 0, 1);
  }

  #round(from: Place, to: Place, rows: number, columns: number): void {
    if (columns === 0) return;
    this.#slots.set([rows, columns, rows, from.offset, from.rowStride, to.offset, to.rowStride]);
    this.#parts.cast(this.#slots, 0, 1);
  }
}

/** The body of causalAttention/bf16 or causalAttentionBackward/bf16; `span` is its own scratch. */
export function narrowAttentionBody(
  parts: NarrowAttentionParts,
  context: ThreadContext,
  span: Span,
  direction: "forward" | "backward",
): KernelBody {
  const rowSlots = new Float64Array(12);
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      const task = headTask(slots, number, FLOAT_BYTES);
      new NarrowHead(parts, context, task, span, rowSlots)[direction]();
    }
  };
}
