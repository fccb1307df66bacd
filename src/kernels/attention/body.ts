/**
 * @file Causal attention from matrix products and row softmaxes: one head of one sequence a task.
 *
 * Queries are taken in blocks of at most 64 rows; a block's scores against all keys up to its last
 * row stay in the thread's scratch, in cache. Keys past a query inside its block are computed and
 * then masked: at most 63 a row. Backward takes the blocks from the last to the first: the last one
 * reaches all keys, so it can overwrite the gradients of keys and values, and the others add to
 * them.
 *
 * Masked probabilities are exact zeros, and 0 · NaN is NaN: values that are not finite would leak
 * into earlier rows of their block. The block's last row sees all of them, so it tells whether
 * there are any; such a block's rows are multiplied one by one, each by the values it sees. That
 * changes no bit of any other row: zeros appended along the depth of a product never do.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";

/** What the body is built from: this thread's f32 products and row kernels of one target. */
export interface AttentionParts {
  readonly products: Readonly<Record<Transposition, BlockMultiplier>>;
  /** The bodies of softmaxCausal and softmaxBackward. */
  readonly softmax: KernelBody;
  readonly softmaxBackward: KernelBody;
}

const ELEMENT_BYTES = 4;
const MAX_QUERY_BLOCK = 64;
/** Score rows start on cache lines. */
const SCORE_STRIDE_MULTIPLE = 16;

/** One block of queries of one head: rows [start, end) against keys [0, end). */
interface QueryBlock {
  readonly start: number;
  readonly rows: number;
  readonly keys: number;
}

/** Scratch for one block's probabilities and their gradients. */
class ScoreBlocks {
  readonly limits: number;
  readonly probabilities: Place;
  readonly gradients: Place;
  readonly queryBlock: number;
  readonly #context: ThreadContext;
  readonly #slots: Float64Array<ArrayBuffer> = new Float64Array(12);

  constructor(context: ThreadContext, span: Span, seqLength: number) {
    const rowStride = roundUp(seqLength, SCORE_STRIDE_MULTIPLE);
    const limitBytes = MAX_QUERY_BLOCK * 4;
    const available = floorDiv(span.byteLength - limitBytes, 2 * rowStride * ELEMENT_BYTES);
    assert(available >= 1, `attention: a sequence of ${seqLength} does not fit the scratch`);
    this.queryBlock = Math.min(MAX_QUERY_BLOCK, available);
    this.limits = span.byteOffset;
    const first = span.byteOffset + limitBytes;
    this.probabilities = { offset: first, rowStride };
    const second = first + this.queryBlock * rowStride * ELEMENT_BYTES;
    this.gradients = { offset: second, rowStride };
    this.#context = context;
  }

  /**
   * Scores in `probabilities` become probabilities; query r of the block sees start + r + 1 keys.
   */
  softmax(body: KernelBody, block: QueryBlock, scale: number): void {
    const words = this.#context.memory.i32;
    for (let row = 0; row < block.rows; row++) {
      words[this.limits / 4 + row] = block.start + row + 1;
    }
    const { offset, rowStride } = this.probabilities;
    const header = [block.rows, block.keys, block.rows];
    this.#slots.set([...header, offset, rowStride, this.limits, 1, offset, rowStride, scale]);
    body(this.#slots, 0, 1);
  }

  /** `gradients` of the probabilities become gradients of the unscaled scores. */
  softmaxBackward(body: KernelBody, block: QueryBlock, scale: number): void {
    const { probabilities: p, gradients: g } = this;
    const header = [block.rows, block.keys, block.rows];
    this.#slots.set([...header, p.offset, p.rowStride, g.offset, g.rowStride, scale]);
    body(this.#slots, 0, 1);
  }
}

/** Row `row` of a place. */
function rowOf(place: Place, row: number): Place {
  const offset = place.offset + row * place.rowStride * ELEMENT_BYTES;
  return { offset, rowStride: place.rowStride };
}

function multiply(
  product: BlockMultiplier,
  a: Place,
  b: Place,
  out: Place,
  m: number,
  n: number,
  k: number,
  accumulate: boolean,
): void {
  product(
    a.offset,
    a.rowStride,
    b.offset,
    b.rowStride,
    out.offset,
    out.rowStride,
    m,
    n,
    k,
    accumulate,
  );
}

/** The probabilities of one block of queries, in `scores.probabilities`. */
function computeProbabilities(
  { products, softmax }: AttentionParts,
  task: HeadTask,
  block: QueryBlock,
  scores: ScoreBlocks,
): void {
  const { rows, keys, start } = block;
  const out = scores.probabilities;
  multiply(products.nt, rowOf(task.qNope, start), task.kNope, out, rows, keys, task.nope, false);
  multiply(products.nt, rowOf(task.qRope, start), task.keyRope, out, rows, keys, task.rope, true);
  scores.softmax(softmax, block, task.scale);
}

/** out = probabilities · values of one block, no row touched by values that it does not see. */
function mixValues(
  nn: BlockMultiplier,
  task: HeadTask,
  block: QueryBlock,
  probabilities: Place,
  memory: CpuMemory,
): void {
  const { start, rows, keys } = block;
  const { value, values } = task;
  const out = rowOf(task.out, start);
  multiply(nn, probabilities, values, out, rows, value, keys, false);
  if (isFiniteRow(memory.f32, rowOf(out, rows - 1), value)) return;
  for (let row = 0; row < rows; row++) {
    const [weights, to] = [rowOf(probabilities, row), rowOf(out, row)];
    multiply(nn, weights, values, to, 1, value, start + row + 1, false);
  }
}

function isFiniteRow(floats: Float32Array, row: Place, columns: number): boolean {
  const first = row.offset / ELEMENT_BYTES;
  for (let at = first; at < first + columns; at++) {
    if (!Number.isFinite(floats[at]!)) return false;
  }
  return true;
}

/** The body of causalAttention/f32. `span` is scratch that the products do not use. */
export function attentionBody(
  parts: AttentionParts,
  context: ThreadContext,
  span: Span,
): KernelBody {
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      const task = headTask(slots, number, ELEMENT_BYTES);
      const scores = new ScoreBlocks(context, span, task.seqLength);
      for (let start = 0; start < task.seqLength; start += scores.queryBlock) {
        const rows = Math.min(scores.queryBlock, task.seqLength - start);
        const block = { start, rows, keys: start + rows };
        computeProbabilities(parts, task, block, scores);
        mixValues(parts.products.nn, task, block, scores.probabilities, context.memory);
      }
    }
  };
}

/** The body of causalAttentionBackward/f32. */
export function attentionBackwardBody(
  parts: AttentionParts,
  context: ThreadContext,
  span: Span,
): KernelBody {
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      const task = headTask(slots, number, ELEMENT_BYTES);
      const scores = new ScoreBlocks(context, span, task.seqLength);
      const step = scores.queryBlock;
      const lastStart = floorDiv(task.seqLength - 1, step) * step;
      for (let start = lastStart; start >= 0; start -= step) {
        const rows = Math.min(step, task.seqLength - start);
        backwardBlock(parts, task, { start, rows, keys: start + rows }, scores, start < lastStart);
      }
    }
  };
}

/** One block's part of all gradients; adds to those of keys and values after the first block. */
function backwardBlock(
  parts: AttentionParts,
  task: HeadTask,
  block: QueryBlock,
  scores: ScoreBlocks,
  accumulate: boolean,
): void {
  const { nn, nt, tn } = parts.products;
  const { rows, keys, start } = block;
  const { nope, rope, value } = task;
  const { probabilities: p, gradients: g } = scores;
  const dOut = rowOf(task.dOut, start);
  computeProbabilities(parts, task, block, scores);
  multiply(tn, p, dOut, task.dValues, keys, value, rows, accumulate);
  multiply(nt, dOut, task.values, g, rows, keys, value, false);
  scores.softmaxBackward(parts.softmaxBackward, block, task.scale);
  multiply(nn, g, task.kNope, rowOf(task.dQNope, start), rows, nope, keys, false);
  multiply(nn, g, task.keyRope, rowOf(task.dQRope, start), rows, rope, keys, false);
  multiply(tn, g, rowOf(task.qNope, start), task.dKNope, keys, nope, rows, accumulate);
  multiply(tn, g, rowOf(task.qRope, start), task.dKeyRope, keys, rope, rows, accumulate);
}
