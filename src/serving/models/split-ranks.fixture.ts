/**
 * @file Two ranks with an engine each: the first answers requests, the second reads their prompts.
 */
import { CpuMemory } from "../../device/cpu/memory.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { collectAll, randomRequests, type Told } from "./random-requests.fixture.ts";
import { openDecodeRank, servePrefillRank } from "./rank-split.ts";

export interface SplitRanksInput {
  /** Of each rank. */
  readonly models: readonly string[];
  readonly seed: number;
  readonly count: number;
}

export interface SplitRanksReport {
  readonly told: readonly Told[];
  /** Prompt tokens that the first rank has computed itself. */
  readonly ownTokens: number;
}

/** Null on the second rank. Input is a `SplitRanksInput`, or that as text. */
export async function runRank({
  rank,
  input,
  join,
}: RankContext): Promise<SplitRanksReport | null> {
  const asked = typeof input === "string" ? JSON.parse(input) : input;
  const { models, seed, count } = asked as SplitRanksInput;
  const memory = CpuMemory.create(null);
  const pair = { communicator: await join(memory), memory };
  const env = { HADAL_THREADS: "1" };
  const origin = { path: models[rank]!, env, prefixFolder: null };
  if (rank === 1) {
    await servePrefillRank(origin, pair);
    return null;
  }
  const { engine, ended } = await openDecodeRank(origin, pair);
  const told = await collectAll(engine, randomRequests(seed, count));
  const read = (await engine.metrics()).find(({ name }) => name === "prompt_tokens_total");
  await engine.close();
  await ended;
  return { told, ownTokens: read?.kind === "counter" ? read.value : 0 };
}
