/**
 * @file The forward pass over new tokens of one or more sequences, over their latent caches.
 *
 *     x = embedding(tokens);  per layer  x += attention(RMSNorm(x)), x += FFN(RMSNorm(x));  logits
 *     = head(RMSNorm(x))
 *
 * The layers are the model's own; only attention takes its absorbed form, for prompts too. So that
 * a token's logits have the same bits alone, in a batch, at any chunking and after any part was
 * taken from a cache: nothing here depends on which tokens share a pass. `draft` runs the first MTP
 * module over tokens of the pass before, with latents of its own. Refuses tokens outside the
 * vocabulary and positions beyond the context.
 */
import { assert, defined, OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import { gatherRows } from "../kernels/gather/contract.ts";
import type { Block } from "../model/block.ts";
import type { Model } from "../model/model.ts";
import type { RmsNorm } from "../model/norm.ts";
import type { Pass } from "../model/pass.ts";
import type { RotaryPositions } from "../model/rope.ts";
import { WeightGradQueue } from "../model/weight-grad-queue.ts";
import { Arena, type ArenaMark } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import { absorbedAttention } from "./absorbed-attention.ts";
import { blocksFor, LatentBlocks } from "./latent-blocks.ts";
import { LatentCache } from "./latent-cache.ts";
import { type LatentPass, planLatentPass, type SequenceTokens } from "./latent-pass.ts";

/** New tokens of one sequence. Each cache is in a pass at most once. */
export interface Feed {
  readonly cache: LatentCache;
  /** At least one. */
  readonly tokens: Int32Array;
  /** Of which tokens the logits are wanted: those that predict what comes after them. */
  readonly logits: "none" | "last" | "all";
}

export interface PassResult {
  /** The wanted logits of each feed, row after row. */
  readonly logits: readonly Float32Array[];
  /**
   * The final hidden state of every token after the last norm, feed after feed; good until the next
   * pass.
   */
  readonly hidden: Tensor<FloatType>;
}

/** Tokens of the pass before for the MTP module to read, in rising positions. */
export interface DraftFeed {
  readonly cache: LatentCache;
  /** Row of the first of them in `PassResult.hidden`. */
  readonly firstRow: number;
  /** Position of that row. */
  readonly position: number;
  /** The token that follows each row. */
  readonly nextTokens: Int32Array;
  /** Whether the last row's logits are wanted. */
  readonly logits: boolean;
}

/** Rows of logits that exist on the device at once. */
const LOGIT_ROWS = 64;

export class Decoder {
  readonly model: Model;
  readonly blocks: LatentBlocks;
  readonly #device: Device;
  readonly #kept: Arena;
  #keptMark: ArenaMark | null = null;
  /** Layers want one; nothing is put into it. */
  readonly #weightGrads: WeightGradQueue;

  /**
   * Latent blocks are allocated for `cacheTokens` positions over all sequences; for the longest
   * sequence the model takes if left out.
   */
  constructor(device: Device, model: Model, cacheTokens?: number) {
    this.model = model;
    const numBlocks = blocksFor(cacheTokens ?? model.config.maxPositionEmbeddings);
    this.blocks = new LatentBlocks(new Arena(device.memory, "latent blocks"), model, numBlocks);
    this.#device = device;
    this.#kept = new Arena(device.memory, "final hidden states");
    this.#weightGrads = new WeightGradQueue(device, new Arena(device.memory, "no gradients"));
  }

  /** An empty cache over the decoder's blocks; `truncate(0)` gives them back. */
  openCache(): LatentCache {
    return new LatentCache(this.blocks);
  }

  /** `forwardKeeping` for the logits alone. */
  forward(feeds: readonly Feed[]): readonly Float32Array[] {
    return this.forwardKeeping(feeds).logits;
  }

  /** One pass over all feeds; advances the caches. */
  forwardKeeping(feeds: readonly Feed[]): PassResult {
    const sequences = this.#layOut(feeds);
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const [pass, latents] = this.#openPass(sequences);
    const tokens = Int32Array.from(feeds.flatMap((feed) => [...feed.tokens]));
    const x = this.#embed(pass, tokens);
    for (const block of this.model.layers.blocks) this.#runBlock(pass, latents, block, x);
    for (const { cache, count } of sequences) cache.advance(count);
    const logits = feeds.map((feed, index) => {
      const { firstToken, count } = sequences[index]!;
      const wanted = { none: 0, last: 1, all: count }[feed.logits];
      const rows = sliceRows(x, firstToken + count - wanted, firstToken + count);
      return this.#computeLogits(pass, this.model.layers.norm, rows);
    });
    return { logits, hidden: this.#keepHidden(pass, x) };
  }

  /**
   * One pass of the first MTP module. Returns the wanted logits of each feed's last row: they
   * predict the token after the last of `nextTokens`. A sequence's rows are drafted from the first
   * on, or from where it left a cached prefix.
   */
  draft(hidden: Tensor<FloatType>, feeds: readonly DraftFeed[]): readonly Float32Array[] {
    const module = defined(this.model.layers.mtpModules[0], "an MTP module to draft with");
    let numTokens = 0;
    const sequences = feeds.map(({ cache, position, nextTokens }): SequenceTokens => {
      const firstToken = numTokens;
      numTokens += nextTokens.length;
      assert(position + nextTokens.length <= cache.length, "only positions of the cache are read");
      return { cache, firstToken, count: nextTokens.length, position };
    });
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const [pass, latents] = this.#openPass(sequences);
    const rows = feeds.flatMap(({ firstRow, nextTokens }) =>
      Array.from(nextTokens, (_, index) => firstRow + index),
    );
    const index = saved.allocate("i32", [1, numTokens]);
    fillFrom(index, rows);
    const before = saved.allocate(pass.floatType, [numTokens, hidden.columns]);
    gatherRows(this.#device, { src: hidden, index, out: before });
    const tokens = saved.allocate("i32", [1, numTokens]);
    fillFrom(
      tokens,
      feeds.flatMap(({ nextTokens }) => [...nextTokens]),
    );
    const x = module.join(pass, { hidden: before, tokens });
    this.#runBlock(pass, latents, module.block, x);
    return sequences.map(({ firstToken, count }, index) => {
      const end = firstToken + count;
      const wanted = sliceRows(x, feeds[index]!.logits ? end - 1 : end, end);
      return this.#computeLogits(pass, module.outputNorm, wanted);
    });
  }

  /** The rows of each feed in the pass, after checking that all of it can be done. */
  #layOut(feeds: readonly Feed[]): SequenceTokens[] {
    const caches = new Set(feeds.map(({ cache }) => cache));
    assert(caches.size === feeds.length && feeds.length > 0, "each cache is in a pass once");
    for (const { tokens } of feeds) this.#checkTokens(tokens);
    let firstToken = 0;
    return feeds.map(({ cache, tokens }) => {
      const { length: position } = cache;
      const most = this.model.config.maxPositionEmbeddings;
      if (position + tokens.length > most || !cache.reserve(tokens.length)) {
        const { numFree } = this.blocks;
        throw new OperationalError(
          "inference.context",
          `${position} + ${tokens.length} tokens do not fit: the model takes ${most}, and ` +
            `${numFree} blocks of 64 are free; shorten the prompt or enlarge the cache`,
        );
      }
      const sequence = { cache, firstToken, count: tokens.length, position };
      firstToken += tokens.length;
      return sequence;
    });
  }

  #checkTokens(tokens: Int32Array): void {
    assert(tokens.length > 0, "a feed has at least one token");
    const { vocabSize } = this.model.config;
    const stranger = tokens.find((token) => !isIntegerIn(token, 0, vocabSize - 1));
    if (stranger === undefined) return;
    throw new OperationalError(
      "inference.token",
      `token ${stranger} is outside the model's vocabulary of ${vocabSize}; ` +
        "use the tokenizer that the model was trained with",
    );
  }

  #openPass(sequences: readonly SequenceTokens[]): [Pass, LatentPass] {
    const { floatType, computeType, arenas, config } = this.model;
    const { saved, scratch } = arenas;
    const numTokens = sequences.reduce((sum, { count }) => sum + count, 0);
    const pass: Pass = {
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
    const { numThreads } = this.#device;
    const options = { numHeads: config.numHeads, numThreads };
    return [pass, planLatentPass(saved, sequences, options)];
  }

  #positionsOf(sequences: readonly SequenceTokens[], numTokens: number): RotaryPositions {
    const { numHeads } = this.model.config;
    const { saved } = this.model.arenas;
    const end = Math.max(...sequences.map(({ position, count }) => position + count));
    const ofTokens = saved.allocate("i32", [1, numTokens]);
    const ofHeads = saved.allocate("i32", [1, numTokens * numHeads]);
    const [tokens, heads] = [view(ofTokens), view(ofHeads)];
    for (const { firstToken, count, position } of sequences) {
      for (let index = 0; index < count; index++) {
        const row = firstToken + index;
        tokens[row] = position + index;
        heads.fill(position + index, row * numHeads, (row + 1) * numHeads);
      }
    }
    return { ...this.model.ropeTables.atLeast(end), ofTokens, ofHeads };
  }

  #embed(pass: Pass, values: Int32Array): Tensor<FloatType> {
    const tokens = pass.saved.allocate("i32", [1, values.length]);
    fillFrom(tokens, values);
    const { embedding } = this.model.layers;
    const x = pass.saved.allocate(pass.floatType, [values.length, this.model.config.hiddenDim]);
    embedding.forward(pass, tokens, x);
    return x;
  }

  /** `x` through one block, in place. */
  #runBlock(pass: Pass, latents: LatentPass, block: Block, x: Tensor<FloatType>): void {
    const { saved, scratch } = pass;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const normed = scratch.allocate(pass.computeType, [x.rows, x.columns]);
    block.attentionNorm.forward(pass, x, normed);
    const cached = this.blocks.layer(block.layerIndex);
    absorbedAttention(block.attention, pass, { latents, cached, x: normed, out: x });
    block.feedForwardNorm.forward(pass, x, normed);
    block.feedForward.layer.forward(pass, normed, x);
  }

  #keepHidden(pass: Pass, x: Tensor<FloatType>): Tensor<FloatType> {
    this.#keptMark?.[Symbol.dispose]();
    this.#keptMark = this.#kept.mark();
    const hidden = this.#kept.allocate(pass.floatType, [x.rows, x.columns]);
    const { norm } = this.model.layers;
    norm.forward(pass, x, hidden);
    return hidden;
  }

  #computeLogits(pass: Pass, norm: RmsNorm, x: Tensor<FloatType>): Float32Array {
    const { head } = this.model.layers;
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
