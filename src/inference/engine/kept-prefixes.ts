/**
 * @file The prefixes that an engine keeps: in memory as shared blocks, below that on a disk.
 *
 *     fetch     before a request is queued: blocks that memory lacks come from the disk
 *     adopt     at admission: the sequence takes what memory has
 *     keep      after reading and at the end: memory remembers, the disk is told, behind
 *
 * Nothing here waits for a disk while streams run: what it gives is put into memory between two
 * steps, block after block. What comes too late, or not at all, is computed. Blocks from the disk
 * have the bits that computing them gives (the disk's files are named after all that decides them),
 * so no token depends on where a block came from.
 */
import { floorDiv } from "../../base/integers.ts";
import { LATENT_BLOCK_TOKENS } from "../../kernels/latent-attention/contract.ts";
import type { LatentBlocks } from "../latent-blocks.ts";
import type { DiskTier } from "../prefix-cache/disk/disk-tier.ts";
import { PrefixCache } from "../prefix-cache/prefix-cache.ts";
import type { EngineMetric } from "./api.ts";
import { diskMetrics } from "./disk-metrics.ts";
import type { EngineCounts } from "./metrics.ts";
import type { Sequence } from "./sequence.ts";

/**
 * Time for a disk to answer, and for each block more; by feel: only one that hangs takes longer.
 */
const LOAD_MS = 5000;
const LOAD_MS_PER_BLOCK = 20;
/** How long the engine's end may wait for what is to be stored. */
const SETTLE_MS = 3000;

export interface PrefixParts {
  readonly blocks: LatentBlocks;
  readonly counts: EngineCounts;
  /** Null: memory alone. */
  readonly disk: DiskTier | null;
  /** Whether anything is kept at all. */
  readonly isOn: boolean;
}

export class KeptPrefixes {
  readonly #parts: PrefixParts;
  readonly #tree: PrefixCache;
  #isClosed = false;

  constructor(parts: PrefixParts) {
    this.#parts = parts;
    this.#tree = new PrefixCache(parts.blocks);
  }

  /** Blocks in memory that are kept. */
  get numBlocks(): number {
    return this.#tree.numBlocks;
  }

  /** Bring into memory what the disk has of a request's prompt; gives up when it is aborted. */
  async fetch({ request }: Sequence, signal: AbortSignal): Promise<void> {
    const { disk, isOn, blocks, counts } = this.#parts;
    if (disk === null || !isOn || request.promptLogProbabilities) return;
    const { prompt, tenant } = request;
    // The last token is read in any case, and no more is fetched than the pool can hold.
    const most = Math.min(prompt.length - 1, blocks.numBlocks * LATENT_BLOCK_TOKENS);
    const numBlocks = floorDiv(most, LATENT_BLOCK_TOKENS);
    const tokens = prompt.subarray(0, numBlocks * LATENT_BLOCK_TOKENS);
    const start = this.#tree.blocksOf(tenant, tokens).length;
    if (start === numBlocks) return;
    counts.add("prefix_cache_disk_queries_total", (numBlocks - start) * LATENT_BLOCK_TOKENS);
    const budget = LOAD_MS + LOAD_MS_PER_BLOCK * (numBlocks - start);
    const budgetMs = Math.min(budget, request.deadlineMs ?? budget);
    const take = (payload: Uint8Array, blockIndex: number): void => {
      if (signal.aborted) return;
      const known = tokens.subarray(0, (blockIndex + 1) * LATENT_BLOCK_TOKENS);
      if (this.#place(tenant, known, payload)) {
        counts.add("prefix_cache_disk_hits_total", LATENT_BLOCK_TOKENS);
      }
    };
    const { promise: aborted, resolve: abort } = Promise.withResolvers<void>();
    signal.addEventListener("abort", () => abort(), { once: true });
    await Promise.race([disk.load({ salt: tenant, tokens, start, budgetMs, take }), aborted]);
  }

  /** Give a sequence that begins what memory has of its tokens. */
  adopt(sequence: Sequence): void {
    const { tenant, tokens } = sequence;
    const { counts, isOn } = this.#parts;
    const mayReuse = isOn && sequence.hiddenSum === null;
    if (!mayReuse || sequence.request.promptLogProbabilities) {
      sequence.start(performance.now(), 0, null);
      return;
    }
    // The last token is read in any case: its logits were not kept.
    const known = Int32Array.from(tokens.slice(0, -1));
    const { blockIds, numTokens, divergence } = this.#tree.match(tenant, known);
    counts.add("prefix_cache_queries_total", known.length);
    counts.add("prefix_cache_hits_total", numTokens);
    sequence.cache.adopt(blockIds);
    for (const block of blockIds) sequence.sharedWithTree.add(block);
    sequence.numKept = blockIds.length;
    if (divergence !== null) counts.add("prefix_cache_near_misses_total", 1);
    const nearMiss =
      divergence === null
        ? null
        : {
            position: divergence.position,
            expected: divergence.cachedToken,
            given: divergence.givenToken,
          };
    sequence.start(performance.now(), numTokens, nearMiss);
  }

  /** Remember the whole blocks that a sequence has read. */
  keep(sequence: Sequence): void {
    const { cache, tenant, tokens } = sequence;
    const numTokens = Math.min(cache.length, tokens.length);
    const numBlocks = floorDiv(numTokens, LATENT_BLOCK_TOKENS);
    if (!this.#parts.isOn || sequence.hiddenSum !== null || numBlocks === 0) return;
    const blocks = cache.blocks.slice(0, numBlocks);
    const known = Int32Array.from(tokens.slice(0, numBlocks * LATENT_BLOCK_TOKENS));
    const kept = this.#tree.insert(tenant, known, blocks);
    blocks.forEach((block, index) => {
      if (kept[index] === block) sequence.sharedWithTree.add(block);
    });
    if (numBlocks <= sequence.numKept) return;
    sequence.numKept = numBlocks;
    void this.#parts.disk?.store({
      salt: tenant,
      tokens: known,
      payload: (blockIndex) => this.#copy(tenant, known, blockIndex),
    });
  }

  /** Let go of up to `numWanted` blocks in memory that nobody reads. */
  evict(numWanted: number): void {
    this.#tree.evict(numWanted);
  }

  /** Forget what memory has, after the disk was given a last moment to take it. */
  async close(): Promise<void> {
    await this.#parts.disk?.settle(SETTLE_MS);
    this.#isClosed = true;
    this.#tree.clear();
  }

  describe(): readonly EngineMetric[] {
    const { disk } = this.#parts;
    return disk === null ? [] : diskMetrics(disk);
  }

  checkIntegrity(): void {
    this.#tree.checkIntegrity();
  }

  /** Put the last block of `tokens` into memory; false if that is no use or there is no room. */
  #place(tenant: string, tokens: Int32Array, payload: Uint8Array): boolean {
    const { blocks } = this.#parts;
    if (this.#isClosed) return false;
    if (blocks.numFree === 0) this.#tree.evict(1);
    const known = this.#tree.blocksOf(tenant, tokens);
    const isNext = (known.length + 1) * LATENT_BLOCK_TOKENS === tokens.length;
    const block = isNext ? blocks.allocate() : null;
    if (block === null) return false;
    blocks.write(block, payload);
    this.#tree.insert(tenant, tokens, [...known, block]);
    blocks.release(block);
    return true;
  }

  /** A copy of a block in memory, if it is still there. */
  #copy(tenant: string, tokens: Int32Array, blockIndex: number): Uint8Array<ArrayBuffer> | null {
    const block = this.#tree.blocksOf(tenant, tokens)[blockIndex];
    return block === undefined ? null : this.#parts.blocks.read(block);
  }
}
