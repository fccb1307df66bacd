/**
 * @file Causal attention from matrix products and row softmaxes: one head of one sequence a task.
 *
 * Queries are taken in blocks of at most 64 rows; a block's scores against all keys up to its last
 * row stay in the thread's scratch, in cache. Keys past a query inside its block are computed and
 * then masked: at most 63 a row. Backward takes the blocks from the last to the first: the last one
 * reaches all keys, so it can overwrite the gradients of keys and values, and the others add to
 * them.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";
import { mixValues, multiply, type QueryBlock, rowOf } from "./query-blocks.ts";

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

/** The probabilities of one block of queries, in `scores.probabilities`. */
function computeProbabilities(
  { products, softmax }: AttentionParts,
  task: HeadTask,
  block: QueryBlock,
  scores: ScoreBlocks,
): void {
  const { rows: m, keys: n, start } = block;
  const { nt } = products;
  const out = scores.probabilities;
  multiply(nt, rowOfFloats(task.qNope, start), task.kNope, out, { m, n, k: task.nope });
  const rope = { m, n, k: task.rope, accumulate: true };
  multiply(nt, rowOfFloats(task.qRope, start), task.keyRope, out, rope);
  scores.softmax(softmax, block, task.scale);
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
        mixValues(block, {
          nn: parts.products.nn,
          floats: context.memory.f32,
          probabilities: scores.probabilities,
          values: task.values,
          valueColumns: task.value,
          out: rowOfFloats(task.out, start),
          bytes: ELEMENT_BYTES,
        });
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
  const dOut = rowOfFloats(task.dOut, start);
  computeProbabilities(parts, task, block, scores);
  multiply(tn, p, dOut, task.dValues, { m: keys, n: value, k: rows, accumulate });
  multiply(nt, dOut, task.values, g, { m: rows, n: keys, k: value });
  scores.softmaxBackward(parts.softmaxBackward, block, task.scale);
  const [qNope, qRope] = [rowOfFloats(task.qNope, start), rowOfFloats(task.qRope, start)];
  const [dQNope, dQRope] = [rowOfFloats(task.dQNope, start), rowOfFloats(task.dQRope, start)];
  multiply(nn, g, task.kNope, dQNope, { m: rows, n: nope, k: keys });
  multiply(nn, g, task.keyRope, dQRope, { m: rows, n: rope, k: keys });
  multiply(tn, g, qNope, task.dKNope, { m: keys, n: nope, k: rows, accumulate });
  multiply(tn, g, qRope, task.dKeyRope, { m: keys, n: rope, k: rows, accumulate });
}

function rowOfFloats(place: Place, row: number): Place {
  return rowOf(place, row, ELEMENT_BYTES);
}
