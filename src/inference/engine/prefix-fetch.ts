/**
 * @file Latent blocks of a prompt from elsewhere: from a disk, or from an engine that reads prompts
 * in this one's place.
 *
 * Nothing here holds up a step. What comes too late, or not at all, is computed. A block from
 * elsewhere has the bits that computing it here gives: the disk's files are named after all that
 * decides them, the other engine has the same weights and kernels. So no token depends on where a
 * block came from.
 */
import { OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { LATENT_BLOCK_TOKENS } from "../../kernels/latent-attention/contract.ts";
import type { DiskTier } from "../prefix-cache/disk/disk-tier.ts";
import type { PrefixReader } from "./api.ts";
import type { KeptPrefixes } from "./kept-prefixes.ts";
import type { EngineCounts } from "./metrics.ts";
import type { Sequence } from "./sequence.ts";

/**
 * Time for a disk to answer, and for each block more; by feel: only one that hangs takes longer.
 */
const LOAD_MS = 5000;
const LOAD_MS_PER_BLOCK = 20;

export interface WantedPrefix {
  readonly sequence: Sequence;
  /** Of its prompt; whole blocks. */
  readonly numTokens: number;
  readonly prefixes: KeptPrefixes;
  readonly signal: AbortSignal;
  readonly counts: EngineCounts;
}

/** What the disk has beyond what memory has. Gives up when the request is aborted. */
export async function fetchFromDisk(disk: DiskTier, wanted: WantedPrefix): Promise<void> {
  const { sequence, numTokens, prefixes, signal, counts } = wanted;
  const { tenant, request } = sequence;
  const tokens = request.prompt.subarray(0, numTokens);
  const start = prefixes.countBlocks(tenant, tokens);
  const numMissing = floorDiv(numTokens, LATENT_BLOCK_TOKENS) - start;
  if (numMissing === 0) return;
  counts.add("prefix_cache_disk_queries_total", numMissing * LATENT_BLOCK_TOKENS);
  const budget = LOAD_MS + LOAD_MS_PER_BLOCK * numMissing;
  const budgetMs = Math.min(budget, request.deadlineMs ?? budget);
  const take = (payload: Uint8Array, blockIndex: number): void => {
    if (signal.aborted) return;
    const known = tokens.subarray(0, (blockIndex + 1) * LATENT_BLOCK_TOKENS);
    if (!prefixes.place(tenant, known, payload)) return;
    sequence.diskTokens += LATENT_BLOCK_TOKENS;
    counts.add("prefix_cache_disk_hits_total", LATENT_BLOCK_TOKENS);
  };
  const { promise: aborted, resolve: abort } = Promise.withResolvers<void>();
  signal.addEventListener("abort", () => abort(), { once: true });
  await Promise.race([disk.load({ salt: tenant, tokens, start, budgetMs, take }), aborted]);
}

/** What is still missing, read by somebody else. */
export async function fetchFromReader(reader: PrefixReader, wanted: WantedPrefix): Promise<void> {
  const { sequence, numTokens, prefixes, signal } = wanted;
  const { tenant, request, drafts } = sequence;
  const { prompt, deadlineMs } = request;
  const start = prefixes.countBlocks(tenant, prompt.subarray(0, numTokens));
  if (start * LATENT_BLOCK_TOKENS === numTokens) return;
  const limits = deadlineMs === null ? [signal] : [signal, AbortSignal.timeout(deadlineMs)];
  // With one token more the MTP module can read the last one of the blocks too.
  const tokens = prompt.slice(0, numTokens + 1);
  const asked = { tokens, tenant, start, drafts };
  try {
    for await (const part of reader.readPrefix(asked, AbortSignal.any(limits))) {
      if (part.kind === "block") {
        const known = tokens.subarray(0, (part.blockIndex + 1) * LATENT_BLOCK_TOKENS);
        prefixes.place(tenant, known, part.payload);
      } else sequence.cachedMost = Math.max(start * LATENT_BLOCK_TOKENS, part.cachedTokens);
    }
  } catch (failure) {
    // What the reader could not give is read here; if it is too busy, so are we.
    if (!(failure instanceof OperationalError) || failure.code === "engine.busy") throw failure;
  }
}
