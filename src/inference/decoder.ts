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
import { LATENT_BLOCK_TOKENS } from "../kernels/latent-attention/contract.ts";
import type { Block } from "../model/block.ts";
import type { Model } from "../model/model.ts";
import type { RmsNorm } from "../model/norm.ts";
import type { Pass } from "../model/pass.ts";
import { WeightGradQueue } from "../model/weight-grad-queue.ts";
import { Arena, type ArenaMark } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import { absorbedAttention } from "./absorbed-attention.ts";
import { ExpertLoad } from "./expert-load.ts";
import { blocksFor, LatentBlocks } from "./latent-blocks.ts";
import { LatentCache } from "./latent-cache.ts";
import {
  allocateInputs,
  fillInputs,
  type InputShape,
  type LatentPass,
  type PassInputs,
  type SequenceTokens,
} from "./latent-pass.ts";
import { type PassArenas, RecordedPasses } from "./recorded-passes.ts";

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

export interface DraftResult {
  /** The wanted logits of each feed. */
  readonly logits: readonly Float32Array[];
  /**
   * The module's output for each feed's last row, to draft behind it: the module then reads its own
   * guess at a position that is reserved, until a pass over the real token. Good until the next
   * pass.
   */
  readonly hidden: Tensor<FloatType>;
}

/** Rows of logits that exist on the device at once. */
const LOGIT_ROWS = 64;
/** Passes over more tokens are not recorded: they take long enough without. */
const RECORDED_TOKENS = 32;

interface PassCall {
  readonly sequences: readonly SequenceTokens[];
  readonly tokens: Int32Array;
  /** Rows of logits of each sequence, from its end. */
  readonly wanted: readonly number[];
}

interface PassPlaces {
  readonly inputs: PassInputs;
  readonly logits: readonly Tensor<FloatType>[];
  readonly hidden: Tensor<FloatType>;
  readonly offsets: Tensor<"i32">;
}

/** Positions that a pass needs tables for. */
function endOf(sequences: readonly SequenceTokens[]): number {
  return Math.max(...sequences.map(({ position, count }) => position + count));
}

export class Decoder {
  readonly model: Model;
  readonly blocks: LatentBlocks;
  readonly expertLoad: ExpertLoad;
  readonly #device: Device;
  readonly #kept: Arena;
  #keptMark: ArenaMark | null = null;
  readonly #recorded: RecordedPasses<PassPlaces>;
  /** Layers want one; nothing is put into it. */
  readonly #weightGrads: WeightGradQueue;

  /**
   * Latent blocks are allocated for `cacheTokens` positions over all sequences; for the longest
   * sequence the model takes if left out.
   */
  constructor(device: Device, model: Model, cacheTokens?: number) {
    this.model = model;
    this.expertLoad = new ExpertLoad(model.config);
    const numBlocks = blocksFor(cacheTokens ?? model.config.maxPositionEmbeddings);
    this.blocks = new LatentBlocks(new Arena(device.memory, "latent blocks"), model, numBlocks);
    this.#device = device;
    this.#kept = new Arena(device.memory, "final hidden states");
    this.#recorded = new RecordedPasses(device);
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
    this.#keptMark?.[Symbol.dispose]();
    this.#keptMark = this.#kept.mark();
    const sequences = this.#layOut(feeds);
    const wanted = sequences.map(
      ({ count }, index) => ({ none: 0, last: 1, all: count })[feeds[index]!.logits],
    );
    const tokens = Int32Array.from(feeds.flatMap((feed) => [...feed.tokens]));
    const shape = this.#shapeOf(sequences);
    const key = this.#keyOf(sequences, shape, wanted);
    const result =
      key !== null && this.#recorded.hasSeen(key)
        ? this.#forwardRecorded(key, shape, { sequences, tokens, wanted })
        : this.#forwardOnce(shape, { sequences, tokens, wanted });
    for (const { cache, count } of sequences) cache.advance(count);
    return result;
  }

  #forwardOnce(shape: InputShape, call: PassCall): PassResult {
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const inputs = allocateInputs(saved, shape);
    const offsets = this.expertLoad.allocate(saved);
    fillInputs(inputs, shape, call);
    const nextOffsets = this.expertLoad.rowsOf(offsets);
    const pass = { ...this.#openPass({ saved, scratch }, inputs, call.sequences), nextOffsets };
    const x = this.#runLayers(pass, inputs);
    this.expertLoad.count(offsets, call.tokens.length);
    const logits = this.#wantedRows(x, call).map((rows) =>
      this.#computeLogits(pass, this.model.layers.norm, rows),
    );
    return { logits, hidden: this.#keepHidden(pass, x) };
  }

  /** The same launches, recorded or replayed. */
  #forwardRecorded(key: string, shape: InputShape, call: PassCall): PassResult {
    const { vocabSize, hiddenDim } = this.model.config;
    const { floatType, layers } = this.model;
    const { logits, hidden, offsets } = this.#recorded.run(key, {
      open: ({ saved }) => ({
        inputs: allocateInputs(saved, shape),
        offsets: this.expertLoad.allocate(saved),
        hidden: saved.allocate(floatType, [call.tokens.length, hiddenDim]),
        logits: call.wanted.map((rows) => saved.allocate(floatType, [rows, vocabSize])),
      }),
      fill: ({ inputs }) => fillInputs(inputs, shape, call),
      launch: (places, arenas) => {
        const nextOffsets = this.expertLoad.rowsOf(places.offsets);
        const pass = { ...this.#openPass(arenas, places.inputs, call.sequences), nextOffsets };
        const x = this.#runLayers(pass, places.inputs);
        this.#wantedRows(x, call).forEach((rows, index) => {
          if (rows.rows === 0) return;
          const normed = layers.norm.compute(pass, arenas.scratch, rows);
          layers.head.forward(pass, normed, places.logits[index]!);
        });
        layers.norm.forward(pass, x, places.hidden);
      },
    });
    this.expertLoad.count(offsets, call.tokens.length);
    return { logits: logits.map((tensor) => Float32Array.from(view(tensor))), hidden };
  }

  #shapeOf(sequences: readonly SequenceTokens[]): InputShape {
    const { numHeads, maxPositionEmbeddings } = this.model.config;
    const blocks = Math.max(...sequences.map(({ cache }) => cache.blocks.length));
    // Wider tables than needed, so that a longer sequence seldom has another shape.
    const tableColumns = Math.min(
      2 ** Math.ceil(Math.log2(blocks)),
      blocksFor(maxPositionEmbeddings),
    );
    const counts = sequences.map(({ count }) => count);
    return { counts, tableColumns, numHeads, numThreads: this.#device.numThreads };
  }

  /** What the launches of a pass depend on; null if it is not to be recorded. */
  #keyOf(
    sequences: readonly SequenceTokens[],
    { counts, tableColumns }: InputShape,
    wanted: readonly number[],
  ): string | null {
    const numTokens = counts.reduce((sum, count) => sum + count, 0);
    // Under such a recipe, what is quantised depends on values that the launching thread reads.
    const looksAtValues = this.model.recipe.outlierFactor !== 0;
    if (numTokens > RECORDED_TOKENS || looksAtValues) return null;
    const { cosTable } = this.model.ropeTables.atLeast(endOf(sequences));
    return [counts, wanted, tableColumns, cosTable.byteOffset].join(":");
  }

  #wantedRows(x: Tensor<FloatType>, { sequences, wanted }: PassCall): Tensor<FloatType>[] {
    return sequences.map(({ firstToken, count }, index) => {
      const end = firstToken + count;
      return sliceRows(x, end - wanted[index]!, end);
    });
  }

  #runLayers(pass: Pass, inputs: PassInputs): Tensor<FloatType> {
    const { embedding, blocks } = this.model.layers;
    const numTokens = inputs.tokens.columns;
    const x = pass.saved.allocate(pass.floatType, [numTokens, this.model.config.hiddenDim]);
    embedding.forward(pass, inputs.tokens, x);
    for (const block of blocks) this.#runBlock(pass, inputs, block, x);
    return x;
  }

  /**
   * One pass of the first MTP module. Returns the wanted logits of each feed's last row: they
   * predict the token after the last of `nextTokens`. A sequence's rows are drafted from the first
   * on, or from where it left a cached prefix.
   */
  draft(hidden: Tensor<FloatType>, feeds: readonly DraftFeed[]): DraftResult {
    const module = defined(this.model.layers.mtpModules[0], "an MTP module to draft with");
    let numTokens = 0;
    const sequences = feeds.map(({ cache, position, nextTokens }): SequenceTokens => {
      const firstToken = numTokens;
      numTokens += nextTokens.length;
      const room = cache.blocks.length * LATENT_BLOCK_TOKENS;
      assert(position + nextTokens.length <= room, "positions of the module are reserved");
      return { cache, firstToken, count: nextTokens.length, position };
    });
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const shape = this.#shapeOf(sequences);
    const inputs = allocateInputs(saved, shape);
    const nextTokens = Int32Array.from(feeds.flatMap((feed) => [...feed.nextTokens]));
    fillInputs(inputs, shape, { sequences, tokens: nextTokens });
    const pass = this.#openPass({ saved, scratch }, inputs, sequences);
    const rows = feeds.flatMap(({ firstRow, nextTokens }) =>
      Array.from(nextTokens, (_, index) => firstRow + index),
    );
    const index = saved.allocate("i32", [1, numTokens]);
    fillFrom(index, rows);
    const before = saved.allocate(pass.floatType, [numTokens, hidden.columns]);
    gatherRows(this.#device, { src: hidden, index, out: before });
    const x = module.join(pass, { hidden: before, tokens: inputs.tokens });
    this.#runBlock(pass, inputs, module.block, x);
    const lasts = sequences.map(({ firstToken, count }) => firstToken + count - 1);
    const logits = lasts.map((last, index) => {
      const wanted = sliceRows(x, feeds[index]!.logits ? last : last + 1, last + 1);
      return this.#computeLogits(pass, module.outputNorm, wanted);
    });
    const lastRows = saved.allocate("i32", [1, lasts.length]);
    fillFrom(lastRows, lasts);
    const kept = this.#kept.allocate(pass.floatType, [lasts.length, x.columns]);
    gatherRows(this.#device, { src: x, index: lastRows, out: kept });
    return { logits, hidden: kept };
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

  #openPass(
    { saved, scratch }: PassArenas,
    { ofTokens, ofHeads }: PassInputs,
    sequences: readonly SequenceTokens[],
  ): Pass {
    const { floatType, computeType, ropeTables } = this.model;
    return {
      device: this.#device,
      floatType,
      computeType,
      saved,
      scratch,
      weightGrads: this.#weightGrads,
      numSequences: 1,
      seqLength: ofTokens.columns,
      positions: { ...ropeTables.atLeast(endOf(sequences)), ofTokens, ofHeads },
      attention: "exact",
      balanceScale: 0,
    };
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
