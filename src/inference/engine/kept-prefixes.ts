/**
 * @file The prefixes that an engine keeps: in memory as shared blocks, below that on a disk.
 *
 *     fetch     before a request is queued: blocks that memory lacks come from elsewhere
 *     adopt     at admission: the sequence takes what memory has
 *     keep      after reading and at the end: memory remembers, the disk is told, behind
 *
 * What other places give is put into memory between two steps, block after block
 * (prefix-fetch.ts).
 */
import { floorDiv } from "../../base/integers.ts";
import { LATENT_BLOCK_TOKENS } from "../../kernels/latent-attention/contract.ts";
import type { LatentBlocks } from "../latent-blocks.ts";
import type { DiskTier } from "../prefix-cache/disk/disk-tier.ts";
import { PrefixCache } from "../prefix-cache/prefix-cache.ts";
import type { EngineMetric, PrefixReader } from "./api.ts";
import { diskMetrics } from "./disk-metrics.ts";
import type { EngineCounts } from "./metrics.ts";
import { fetchFromDisk, fetchFromReader } from "./prefix-fetch.ts";
import type { Sequence } from "./sequence.ts";

/** How long the engine's end may wait for what is to be stored. */
const SETTLE_MS = 3000;

export interface PrefixParts {
  readonly blocks: LatentBlocks;
  readonly counts: EngineCounts;
  /** Null: memory alone. */
  readonly disk: DiskTier | null;
  /** Who reads prompts in this engine's place; null: nobody. */
  readonly reader: PrefixReader | null;
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

  /** Bring into memory what other places have of a request's prompt, before it is queued. */
  async fetch(sequence: Sequence, signal: AbortSignal): Promise<void> {
    const { isOn, blocks, disk, reader, counts } = this.#parts;
    const { request } = sequence;
    if (!isOn || request.promptLogProbabilities) return;
    // The last token is read in any case, and no more is fetched than the pool can hold.
    const most = Math.min(request.prompt.length - 1, blocks.numBlocks * LATENT_BLOCK_TOKENS);
    const numTokens = floorDiv(most, LATENT_BLOCK_TOKENS) * LATENT_BLOCK_TOKENS;
    const wanted = { sequence, numTokens, prefixes: this, signal, counts };
    if (disk !== null) await fetchFromDisk(disk, wanted);
    if (reader !== null) await fetchFromReader(reader, wanted);
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
    // What was read elsewhere for this request was not cached.
    const cachedTokens = Math.min(numTokens, sequence.cachedMost);
    sequence.cachedMost = Number.POSITIVE_INFINITY;
    counts.add("prefix_cache_hits_total", cachedTokens);
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
    sequence.start(performance.now(), cachedTokens, nearMiss);
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
      payload: (blockIndex) => this.copy(tenant, known, blockIndex),
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

  /** How many whole blocks of `tokens` memory has. */
  countBlocks(tenant: string, tokens: Int32Array): number {
    return this.#tree.blocksOf(tenant, tokens).length;
  }

  /** Put the last block of `tokens` into memory; false if that is no use or there is no room. */
  place(tenant: string, tokens: Int32Array, payload: Uint8Array): boolean {
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
  copy(tenant: string, tokens: Int32Array, blockIndex: number): Uint8Array<ArrayBuffer> | null {
    const block = this.#tree.blocksOf(tenant, tokens)[blockIndex];
    return block === undefined ? null : this.#parts.blocks.read(block);
  }
}
