/**
 * @file The forward pass over new tokens of one or more sequences, over their latent caches.
 *
 *     x = embedding(tokens);  per layer  x += attention(RMSNorm(x)), x += FFN(RMSNorm(x));  logits
 *     = head(RMSNorm(x))
 *
 * The layers are the model's own; only attention takes its absorbed form, for prompts too. So that
 * a token's logits have the same bits alone, in a batch, at any chunking and after any part was
 * taken from a cache: nothing here depends on which tokens share a pass. Refuses tokens outside the
 * vocabulary and positions beyond the caches.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import type { Model } from "../model/model.ts";
import type { Pass } from "../model/pass.ts";
import type { RotaryPositions } from "../model/rope.ts";
import { WeightGradQueue } from "../model/weight-grad-queue.ts";
import { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import { absorbedAttention, type SequenceRows } from "./absorbed-attention.ts";
import { LatentCache } from "./latent-cache.ts";

/** New tokens of one sequence. Each cache is in a pass at most once. */
export interface Feed {
  readonly cache: LatentCache;
  /** At least one. */
  readonly tokens: Int32Array;
  /** Of which tokens the logits are wanted: those that predict what comes after them. */
  readonly logits: "none" | "last" | "all";
}

/** Rows of logits that exist on the device at once. */
const LOGIT_ROWS = 64;

export class Decoder {
  readonly model: Model;
  readonly #device: Device;
  readonly #caches: Arena;
  /** Layers want one; nothing is put into it. */
  readonly #weightGrads: WeightGradQueue;

  constructor(device: Device, model: Model) {
    this.model = model;
    this.#device = device;
    this.#caches = new Arena(device.memory, "latent caches");
    this.#weightGrads = new WeightGradQueue(device, new Arena(device.memory, "no gradients"));
  }

  /**
   * A cache for `capacity` positions, at most what the model was made for. It lives as long as the
   * decoder: reuse it.
   */
  openCache(capacity: number): LatentCache {
    const { config, floatType, ropeTables } = this.model;
    const most = config.maxPositionEmbeddings;
    if (!isIntegerIn(capacity, 1, most)) {
      throw new OperationalError(
        "inference.context",
        `a context of ${capacity} tokens was asked for; this model takes 1 to ${most}`,
      );
    }
    ropeTables.atLeast(capacity);
    return new LatentCache(this.#caches, config, capacity, floatType);
  }

  /**
   * One pass over all feeds. Returns the wanted logits of each feed, row after row, and advances
   * the caches.
   */
  forward(feeds: readonly Feed[]): Float32Array[] {
    const sequences = this.#layOut(feeds);
    const numTokens = sequences.reduce((sum, { count }) => sum + count, 0);
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const pass = this.#openPass(sequences, numTokens);
    const x = this.#embed(pass, feeds, numTokens);
    const { blocks } = this.model.layers;
    for (const [layerIndex, block] of blocks.entries()) {
      using _block = saved.mark();
      using _mark = scratch.mark();
      const normed = scratch.allocate(pass.computeType, [x.rows, x.columns]);
      block.attentionNorm.forward(pass, x, normed);
      absorbedAttention(block.attention, pass, { layerIndex, sequences, x: normed, out: x });
      block.feedForwardNorm.forward(pass, x, normed);
      block.feedForward.layer.forward(pass, normed, x);
    }
    for (const { cache, count } of sequences) cache.advance(count);
    return feeds.map((feed, index) => {
      const { firstRow, count } = sequences[index]!;
      const wanted = { none: 0, last: 1, all: count }[feed.logits];
      return this.#computeLogits(pass, sliceRows(x, firstRow + count - wanted, firstRow + count));
    });
  }

  /** The rows of each feed in the pass, after checking that all of it can be done. */
  #layOut(feeds: readonly Feed[]): SequenceRows[] {
    const caches = new Set(feeds.map(({ cache }) => cache));
    assert(caches.size === feeds.length && feeds.length > 0, "each cache is in a pass once");
    let firstRow = 0;
    return feeds.map(({ cache, tokens }) => {
      assert(tokens.length > 0, "a feed has at least one token");
      if (cache.length + tokens.length > cache.capacity) {
        throw new OperationalError(
          "inference.context",
          `${cache.length} + ${tokens.length} tokens do not fit a context of ${cache.capacity}; ` +
            "shorten the prompt or open a larger context",
        );
      }
      this.#checkTokens(tokens);
      const sequence = { cache, firstRow, count: tokens.length };
      firstRow += tokens.length;
      return sequence;
    });
  }

  #checkTokens(tokens: Int32Array): void {
    const { vocabSize } = this.model.config;
    const stranger = tokens.find((token) => token < 0 || token >= vocabSize);
    if (stranger === undefined) return;
    throw new OperationalError(
      "inference.token",
      `token ${stranger} is outside the model's vocabulary of ${vocabSize}; ` +
        "use the tokenizer that the model was trained with",
    );
  }

  #openPass(sequences: readonly SequenceRows[], numTokens: number): Pass {
    const { floatType, computeType, arenas } = this.model;
    const { saved, scratch } = arenas;
    return {
      device: this.#device,
      floatType,
      computeType,
      saved,
      scratch,
      weightGrads: this.#weightGrads,
      numSequences: 1,
      seqLength: numTokens,
      positions: this.#positionsOf(sequences, numTokens),
      attention: "exact",
      balanceScale: 0,
    };
  }

  #positionsOf(sequences: readonly SequenceRows[], numTokens: number): RotaryPositions {
    const { numHeads } = this.model.config;
    const { saved } = this.model.arenas;
    const end = sequences.reduce(
      (most, { cache, count }) => Math.max(most, cache.length + count),
      0,
    );
    const ofTokens = saved.allocate("i32", [1, numTokens]);
    const ofHeads = saved.allocate("i32", [1, numTokens * numHeads]);
    const [tokens, heads] = [view(ofTokens), view(ofHeads)];
    for (const { cache, firstRow, count } of sequences) {
      for (let index = 0; index < count; index++) {
        const row = firstRow + index;
        tokens[row] = cache.length + index;
        heads.fill(cache.length + index, row * numHeads, (row + 1) * numHeads);
      }
    }
    return { ...this.model.ropeTables.atLeast(end), ofTokens, ofHeads };
  }

  #embed(pass: Pass, feeds: readonly Feed[], numTokens: number): Tensor<FloatType> {
    const tokens = pass.saved.allocate("i32", [1, numTokens]);
    fillFrom(tokens, Int32Array.from(feeds.flatMap((feed) => [...feed.tokens])));
    const { embedding } = this.model.layers;
    const x = pass.saved.allocate(pass.floatType, [numTokens, this.model.config.hiddenDim]);
    embedding.forward(pass, tokens, x);
    return x;
  }

  #computeLogits(pass: Pass, x: Tensor<FloatType>): Float32Array {
    const { norm, head } = this.model.layers;
    const { vocabSize } = this.model.config;
    const logits = new Float32Array(x.rows * vocabSize);
    for (let start = 0; start < x.rows; start += LOGIT_ROWS) {
      using _mark = pass.scratch.mark();
      const rows = sliceRows(x, start, Math.min(x.rows, start + LOGIT_ROWS));
      const out = pass.scratch.allocate(pass.floatType, [rows.rows, vocabSize]);
      head.forward(pass, norm.compute(pass, pass.scratch, rows), out);
      logits.set(view(out), start * vocabSize);
    }
    return logits;
  }
}
