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
import type { Pass } from "../model/pass.ts";
import { WeightGradQueue } from "../model/weight-grad-queue.ts";
import { finish, type Work } from "../parallel/communicator/work.ts";
import { runInterleaved } from "../parallel/pipeline/executor/interleave.ts";
import { Arena, type ArenaMark } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import { absorbedAttention } from "./absorbed-attention.ts";
import {
  type DraftCall,
  type DraftFeed,
  type DraftPlaces,
  type DraftResult,
  fillDraft,
  lastLogits,
  openDraft,
  rowsBefore,
} from "./draft-pass.ts";
import type { EngineMetric } from "./engine/api.ts";
import { ExpertLoad } from "./expert-load.ts";
import type { Followers } from "./expert-ranks/followers.ts";
import { blocksFor, LatentBlocks } from "./latent-blocks.ts";
import { LatentCache } from "./latent-cache.ts";
import {
  allocateInputs,
  copyOfLogits,
  countRows,
  countTiles,
  endOf,
  fillInputs,
  type InputShape,
  type LatentPass,
  type PassCall,
  type PassInputs,
  type SequenceTokens,
  wantedRowsOf,
} from "./latent-pass.ts";
import { countWork, cutInTwo, type TokenWork, tokenWorkOf } from "./micro-batches.ts";
import { type PassArenas, type RecordedArenas, RecordedPasses } from "./recorded-passes.ts";

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

/** Rows of logits that exist on the device at once. */
const LOGIT_ROWS = 64;
/** Passes over more tokens are not recorded: they take long enough without. */
const RECORDED_TOKENS = 64;

interface PassPlaces {
  readonly inputs: PassInputs;
  /** The rows of `wanted`, one after another. */
  readonly wantedRows: Tensor<"i32">;
  readonly logits: Tensor<FloatType>;
  readonly hidden: Tensor<FloatType>;
  readonly offsets: Tensor<"i32">;
}

/** Tokens that go through the layers together. */
interface MicroBatch {
  readonly pass: Pass;
  readonly inputs: PassInputs;
  readonly offsets: Tensor<"i32">;
  /** Their rows of the residual stream. */
  readonly x: Tensor<FloatType>;
}

export class Decoder {
  readonly model: Model;
  readonly blocks: LatentBlocks;
  readonly expertLoad: ExpertLoad;
  readonly #device: Device;
  readonly #kept: Arena;
  #keptMark: ArenaMark | null = null;
  readonly #recorded: RecordedPasses<PassPlaces>;
  /** What the second of two micro-batches stands in. */
  readonly #second: PassArenas;
  readonly #workOf: TokenWork;
  /** Those who share the experts; null: all are here. */
  readonly #followers: Followers | null;
  /** Apart from the others, whose hidden states stay as they are while the module drafts. */
  readonly #recordedDrafts: RecordedPasses<DraftPlaces>;
  /** Layers want one; nothing is put into it. */
  readonly #weightGrads: WeightGradQueue;

  /**
   * Latent blocks are allocated for `cacheTokens` positions over all sequences; for the longest
   * sequence the model takes if left out. The model's experts are here, or they are shared with
   * `followers`.
   */
  constructor(
    device: Device,
    model: Model,
    cacheTokens?: number,
    followers: Followers | null = null,
  ) {
    this.model = model;
    this.#followers = followers;
    this.expertLoad = new ExpertLoad(model.config);
    const numBlocks = blocksFor(cacheTokens ?? model.config.maxPositionEmbeddings);
    this.blocks = new LatentBlocks(new Arena(device.memory, "latent blocks"), model, numBlocks);
    this.#device = device;
    this.#kept = new Arena(device.memory, "final hidden states");
    this.#second = {
      saved: new Arena(device.memory, "second micro-batch"),
      scratch: new Arena(device.memory, "second micro-batch's scratch"),
    };
    this.#workOf = tokenWorkOf(model.config);
    this.#recorded = new RecordedPasses(device);
    this.#recordedDrafts = new RecordedPasses(device);
    this.#weightGrads = new WeightGradQueue(device, new Arena(device.memory, "no gradients"));
  }

  /** What is counted of the ranks that share the experts, if any do. */
  describeFollowers(): readonly EngineMetric[] {
    return this.#followers?.describe(this.expertLoad) ?? [];
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
    const call = { sequences, tokens, wanted };
    const key = this.#keyOf(shape, call);
    const result =
      key !== null && this.#recorded.hasSeen(key)
        ? this.#forwardRecorded(key, shape, call)
        : this.#forwardOnce(call);
    for (const { cache, count } of sequences) cache.advance(count);
    return result;
  }

  #forwardOnce(call: PassCall): PassResult {
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    using _second = this.#second.saved.mark();
    using _secondScratch = this.#second.scratch.mark();
    const rows = wantedRowsOf(call);
    const wantedRows = saved.allocate("i32", [1, rows.length]);
    fillFrom(wantedRows, rows);
    const x = this.#allocateStream(saved, call.tokens.length);
    const microBatches = this.#microBatchesOf(call, x);
    const [one, other] = microBatches as [MicroBatch, MicroBatch | undefined];
    this.#followers?.announce(other === undefined ? "layers" : "microBatches", this.expertLoad);
    const start = performance.now();
    if (other === undefined) finish(this.#layersWork(one));
    else runInterleaved(this.#layersWork(one), this.#layersWork(other), null);
    this.#noteTime(call, other !== undefined, performance.now() - start);
    const { pass } = one;
    this.expertLoad.count(
      microBatches.map(({ offsets }) => offsets),
      call.tokens.length,
    );
    const logits = this.#computeLogits(pass, this.#gather(pass, x, wantedRows));
    return { logits: this.#split(logits, call), hidden: this.#keepHidden(pass, x) };
  }

  #noteTime({ sequences, tokens }: PassCall, isTwo: boolean, milliseconds: number): void {
    if (this.#followers === null) return;
    const work = countWork(sequences, this.#workOf);
    this.#followers.choice.note({ numTokens: tokens.length, isTwo, work, milliseconds });
  }

  /** One, or two that alternate where that hides how long tokens are with other ranks. */
  #microBatchesOf(call: PassCall, x: Tensor<FloatType>): MicroBatch[] {
    const isTwo = this.#followers?.choice.takesTwo(call.tokens.length) ?? false;
    const parts = isTwo ? cutInTwo(call, this.#workOf) : [call];
    let firstRow = 0;
    return parts.map(({ sequences, tokens }, index) => {
      const arenas = index === 0 ? this.model.arenas : this.#second;
      const shape = this.#shapeOf(sequences);
      const inputs = allocateInputs(arenas.saved, shape);
      fillInputs(inputs, shape, { sequences, tokens });
      const offsets = this.expertLoad.allocate(arenas.saved);
      const nextOffsets = this.expertLoad.rowsOf(offsets);
      const pass = { ...this.#openPass(arenas, inputs, sequences), nextOffsets };
      const rows = sliceRows(x, firstRow, firstRow + tokens.length);
      firstRow += tokens.length;
      return { pass, inputs, offsets, x: rows };
    });
  }

  /** The same launches, recorded or replayed. */
  #forwardRecorded(key: string, shape: InputShape, call: PassCall): PassResult {
    const { vocabSize, hiddenDim } = this.model.config;
    const { floatType } = this.model;
    const rows = wantedRowsOf(call);
    const { logits, hidden, offsets } = this.#recorded.run(key, {
      open: ({ saved }) => ({
        inputs: allocateInputs(saved, shape),
        offsets: this.expertLoad.allocate(saved),
        wantedRows: saved.allocate("i32", [1, rows.length]),
        hidden: saved.allocate(floatType, [call.tokens.length, hiddenDim]),
        logits: saved.allocate(floatType, [rows.length, vocabSize]),
      }),
      fill: ({ inputs, wantedRows }) => {
        fillInputs(inputs, shape, call);
        fillFrom(wantedRows, rows);
        this.#followers?.announce("layers", this.expertLoad);
      },
      launch: (places, arenas) => this.#recordableWork(call, places, arenas),
    });
    this.expertLoad.count([offsets], call.tokens.length);
    return { logits: this.#split(copyOfLogits(logits), call), hidden };
  }

  *#recordableWork(call: PassCall, places: PassPlaces, arenas: RecordedArenas): Work<void> {
    const { inputs, wantedRows, hidden, logits } = places;
    const { head, norm } = this.model.layers;
    const nextOffsets = this.expertLoad.rowsOf(places.offsets);
    const pass = { ...this.#openPass(arenas, inputs, call.sequences), nextOffsets };
    const x = this.#allocateStream(pass.saved, call.tokens.length);
    yield* this.#layersWork({ pass, inputs, x });
    if (logits.rows > 0) {
      const last = this.#gather(pass, x, wantedRows);
      head.forward(pass, norm.compute(pass, arenas.scratch, last), logits);
    }
    norm.forward(pass, x, hidden);
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
  #keyOf(shape: InputShape, { sequences, tokens, wanted }: PassCall): string | null {
    // Under such a recipe, what is quantised depends on values that the launching thread reads.
    const looksAtValues = this.model.recipe.outlierFactor !== 0;
    if (tokens.length > RECORDED_TOKENS || looksAtValues) return null;
    const { cosTable } = this.model.ropeTables.atLeast(endOf(sequences));
    // How the tokens are spread over the sequences is in the inputs.
    const sizes = [tokens.length, sequences.length, countRows(wanted), countTiles(shape)];
    return [...sizes, shape.tableColumns, cosTable.byteOffset].join(":");
  }

  /** The wanted logits of each sequence, which stand one after another. */
  #split(logits: Float32Array, { wanted }: PassCall): Float32Array[] {
    const { vocabSize } = this.model.config;
    let start = 0;
    return wanted.map((rows) => {
      const first = start;
      start += rows * vocabSize;
      return logits.subarray(first, start);
    });
  }

  /** Rows of `x`, in scratch. */
  #gather(pass: Pass, x: Tensor<FloatType>, index: Tensor<"i32">): Tensor<FloatType> {
    const out = pass.scratch.allocate(pass.floatType, [index.columns, x.columns]);
    if (out.rows > 0) gatherRows(pass.device, { src: x, index, out });
    return out;
  }

  /** The residual stream of so many tokens. */
  #allocateStream(saved: Arena, numTokens: number): Tensor<FloatType> {
    return saved.allocate(this.model.floatType, [numTokens, this.model.config.hiddenDim]);
  }

  /** Through embedding and layers; yields where it waits for other ranks. */
  *#layersWork({ pass, inputs, x }: Omit<MicroBatch, "offsets">): Work<void> {
    const { embedding, blocks } = this.model.layers;
    embedding.forward(pass, inputs.tokens, x);
    for (const block of blocks) yield* this.#blockWork(pass, inputs, block, x);
  }

  /**
   * One pass of the first MTP module. Returns the wanted logits of each feed's last row: they
   * predict the token after the last of `nextTokens`. A sequence's rows are drafted from the first
   * on, or from where it left a cached prefix.
   */
  draft(hidden: Tensor<FloatType>, feeds: readonly DraftFeed[]): DraftResult {
    let firstToken = 0;
    const sequences = feeds.map(({ cache, position, nextTokens }): SequenceTokens => {
      const count = nextTokens.length;
      const room = cache.blocks.length * LATENT_BLOCK_TOKENS;
      assert(position + count <= room, "positions of the module are reserved");
      const sequence = { cache, firstToken, count, position };
      firstToken += count;
      return sequence;
    });
    const tokens = Int32Array.from(feeds.flatMap((feed) => [...feed.nextTokens]));
    const wanted = feeds.map(({ logits }) => (logits ? 1 : 0));
    const call = { sequences, tokens, wanted, before: rowsBefore(hidden, feeds) };
    const shape = this.#shapeOf(sequences);
    const key = this.#keyOf(shape, call);
    return key !== null && this.#recordedDrafts.hasSeen(key)
      ? this.#draftRecorded(key, shape, call)
      : this.#draftOnce(shape, call);
  }

  #draftOnce(shape: InputShape, call: DraftCall): DraftResult {
    const { saved, scratch } = this.model.arenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const places = openDraft(saved, shape, { model: this.model, call });
    fillDraft(places, shape, call);
    this.#followers?.announce("draft", this.expertLoad);
    finish(this.#draftWork(places, { saved, scratch }, call.sequences));
    const { hidden } = places;
    const kept = this.#kept.allocate(hidden.dtype, [hidden.rows, hidden.columns]);
    view(kept).set(view(hidden));
    return { logits: lastLogits(places.logits, call), hidden: kept };
  }

  /** The same launches, recorded or replayed. */
  #draftRecorded(key: string, shape: InputShape, call: DraftCall): DraftResult {
    const { logits, hidden } = this.#recordedDrafts.run(key, {
      open: ({ saved }) => openDraft(saved, shape, { model: this.model, call }),
      fill: (places) => {
        fillDraft(places, shape, call);
        this.#followers?.announce("draft", this.expertLoad);
      },
      launch: (places, arenas) => this.#draftWork(places, arenas, call.sequences),
    });
    return { logits: lastLogits(logits, call), hidden };
  }

  *#draftWork(
    { inputs, before, lastRows, hidden, logits }: DraftPlaces,
    arenas: PassArenas | RecordedArenas,
    sequences: readonly SequenceTokens[],
  ): Work<void> {
    const module = defined(this.model.layers.mtpModules[0], "an MTP module to draft with");
    const pass = this.#openPass(arenas, inputs, sequences);
    const x = module.join(pass, { hidden: before, tokens: inputs.tokens });
    yield* this.#blockWork(pass, inputs, module.block, x);
    gatherRows(this.#device, { src: x, index: lastRows, out: hidden });
    if (logits.rows === 0) return;
    const normed = module.outputNorm.compute(pass, arenas.scratch, hidden);
    this.model.layers.head.forward(pass, normed, logits);
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
    arenas: PassArenas | RecordedArenas,
    { ofTokens }: PassInputs,
    sequences: readonly SequenceTokens[],
  ): Pass {
    const { floatType, computeType, ropeTables } = this.model;
    const { saved, scratch } = arenas;
    const pass: Pass = {
      device: this.#device,
      floatType,
      computeType,
      saved,
      scratch,
      weightGrads: this.#weightGrads,
      numSequences: 1,
      seqLength: ofTokens.columns,
      positions: { ...ropeTables.atLeast(endOf(sequences)), ofTokens },
      attention: "exact",
      balanceScale: 0,
    };
    if (!("leave" in arenas)) return pass;
    const { leave } = arenas;
    return { ...pass, unrecorded: (work) => leave((within) => work({ ...pass, ...within })) };
  }

  /** `x` through one block, in place. */
  *#blockWork(pass: Pass, latents: LatentPass, block: Block, x: Tensor<FloatType>): Work<void> {
    const { saved, scratch } = pass;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    const normed = scratch.allocate(pass.computeType, [x.rows, x.columns]);
    block.attentionNorm.forward(pass, x, normed);
    const cached = this.blocks.layer(block.layerIndex);
    absorbedAttention(block.attention, pass, { latents, cached, x: normed, out: x });
    block.feedForwardNorm.forward(pass, x, normed);
    const { kind, layer } = block.feedForward;
    if (kind === "moe") yield* layer.forwardWork(pass, normed, { out: x });
    else layer.forward(pass, normed, x);
  }

  #keepHidden(pass: Pass, x: Tensor<FloatType>): Tensor<FloatType> {
    const hidden = this.#kept.allocate(pass.floatType, [x.rows, x.columns]);
    const { norm } = this.model.layers;
    norm.forward(pass, x, hidden);
    return hidden;
  }

  #computeLogits(pass: Pass, x: Tensor<FloatType>): Float32Array {
    const { head, norm } = this.model.layers;
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
