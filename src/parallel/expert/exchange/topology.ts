/**
 * @file Ranks on hosts, and experts on ranks.
 *
 *     rank = host·L + local          expert e lives on rank ⌊e ÷ (E ÷ ranks)⌋
 *
 * A token goes to another host over a *rail*: from a rank to the rank with the same local index
 * there, once for each host, however many experts it chose on it. From there it goes to the ranks
 * of the host. Links across hosts are slow and links within one are fast, so the first hop decides.
 */
import { assert } from "../../../base/errors.ts";
import { divExact, floorDiv } from "../../../base/integers.ts";

export interface ExpertTopology {
  readonly numRanks: number;
  readonly ranksPerHost: number;
  readonly numHosts: number;
  readonly numExperts: number;
  readonly expertsPerRank: number;
}

export function expertTopology(counts: {
  readonly numRanks: number;
  readonly ranksPerHost: number;
  readonly numExperts: number;
}): ExpertTopology {
  const { numRanks, ranksPerHost, numExperts } = counts;
  return {
    ...counts,
    numHosts: divExact(numRanks, ranksPerHost),
    expertsPerRank: divExact(numExperts, numRanks),
  };
}

export function rankOfExpert(
  { expertsPerRank, numExperts }: ExpertTopology,
  expert: number,
): number {
  assert(expert >= 0 && expert < numExperts, `expert ${expert} of ${numExperts}`);
  return floorDiv(expert, expertsPerRank);
}

export function hostOfRank({ ranksPerHost }: ExpertTopology, rank: number): number {
  return floorDiv(rank, ranksPerHost);
}

/** What one token's crossing of one link between hosts takes, there and back. */
export interface CrossingBytes {
  readonly dispatch: number;
  readonly combine: number;
}

/** FP8 codes with an f32 scale for every 128 of them there; BF16 back. */
export function crossingBytes(hiddenDim: number): CrossingBytes {
  return { dispatch: hiddenDim + 4 * divExact(hiddenDim, 128), combine: 2 * hiddenDim };
}

/** Bytes that cross to other hosts, for tokens that each go to so many of them on average. */
export function bytesAcrossHosts(
  numTokens: number,
  remoteHostsPerToken: number,
  hiddenDim: number,
): CrossingBytes {
  const { dispatch, combine } = crossingBytes(hiddenDim);
  const crossings = numTokens * remoteHostsPerToken;
  return { dispatch: crossings * dispatch, combine: crossings * combine };
}
