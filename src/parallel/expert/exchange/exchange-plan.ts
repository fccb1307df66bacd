/**
 * @file Who sends which token where: follows from the gate's choices, made on the way of the first
 * dispatch, used again by every payload of the layer, forward and backward.
 *
 *   T tokens of this rank   A tokens that arrive here over the rail, from all hosts
 *   R tokens that end here: each once, although it may have chosen several experts of this rank
 *
 * All counts of both hops follow from one table that every rank sends to every other in a single
 * message: how many of its tokens go to each rank, and how many to each host. No rank then asks
 * another how much is coming. The choices themselves travel with the tokens.
 */
import { assert } from "../../../base/errors.ts";
import type { Arena } from "../../../tensor/arena.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator, Operation } from "../../communicator/communicator.ts";
import { type Hop, sumOf } from "./hop.ts";
import { type ExpertTopology, hostOfRank, rankOfExpert } from "./topology.ts";

/** No expert: a choice that was left out, or one that lives elsewhere. */
export const NO_EXPERT = -1;

export interface ExchangePlan {
  readonly numTokens: number;
  /** Over the rail; members are hosts, rows of the source are tokens. null: there is one host. */
  readonly rail: Hop | null;
  /** Rows of the source of the second hop. */
  readonly numArrived: number;
  /** Within the host; members are local ranks. null: there are several hosts of one rank. */
  readonly host: Hop | null;
  readonly numReceived: number;
  /** The choices of each received token that live here, as local expert numbers; [R·K]. */
  readonly localExperts: Int32Array;
}

/** The communicators of the two hops. */
export interface Links {
  readonly world: Communicator;
  readonly rail: Communicator;
  readonly host: Communicator;
}

/** What every rank has told of its tokens: how many go to each rank, and to each host. */
export interface TokenCounts {
  toRank(from: number, rank: number): number;
  toHost(from: number, host: number): number;
}

/** Counts on their way. */
export interface Counting {
  /** Waits for those of others, where others have tokens. */
  readonly counts: () => TokenCounts;
  /** When it is done, what was taken of scratch may be given back. */
  readonly operation: Operation;
}

/**
 * Collective: every rank's counts, or those of `source` if it alone has tokens. `choice` is [T, K];
 * what is taken of `scratch` is given back by the caller.
 */
export function countTokens(
  topology: ExpertTopology,
  world: Communicator,
  tokens: {
    readonly choice: Tensor<"i32">;
    readonly source: number | undefined;
    readonly scratch: Arena;
  },
): Counting {
  const { numRanks, numHosts } = topology;
  const { choice, source, scratch } = tokens;
  const own = scratch.allocate("i32", [numRanks + numHosts]);
  const counts = view(own).fill(0);
  forEachToken(topology, choice, (_, ranks) => {
    for (const rank of ranks) counts[rank]!++;
    for (const host of hostsOf(topology, ranks)) counts[numRanks + host]!++;
  });
  if (source !== undefined) return countsOfSource(topology, world, { source, choice, own });
  const all = scratch.allocate("i32", [world.size, numRanks + numHosts]);
  const operation = world.allGather(own, all);
  return {
    operation,
    counts: () => {
      operation.wait();
      const table = view(all).slice();
      return {
        toRank: (from, rank) => table[from * (numRanks + numHosts) + rank]!,
        toHost: (from, host) => table[from * (numRanks + numHosts) + numRanks + host]!,
      };
    },
  };
}

/** Told by the source alone, which therefore waits for nobody. */
function countsOfSource(
  { numRanks }: ExpertTopology,
  world: Communicator,
  {
    source,
    choice,
    own,
  }: {
    readonly source: number;
    readonly choice: Tensor<"i32">;
    readonly own: Tensor<"i32">;
  },
): Counting {
  const isSource = world.rank === source;
  assert(isSource || choice.rows === 0, `rank ${world.rank} has tokens; rank ${source} alone may`);
  const operation = world.broadcast(own, source);
  return {
    operation,
    counts: () => {
      if (!isSource) operation.wait();
      const table = view(own).slice();
      return {
        toRank: (from, rank) => (from === source ? table[rank]! : 0),
        toHost: (from, host) => (from === source ? table[numRanks + host]! : 0),
      };
    },
  };
}

/** Tokens that will end on a rank. */
export function receivedBy(
  { numRanks }: ExpertTopology,
  rank: number,
  counts: TokenCounts,
): number {
  return sumOf(Array.from({ length: numRanks }, (_, from) => counts.toRank(from, rank)));
}

/** The first hop: each token to every host it needs. */
export function planRail(
  topology: ExpertTopology,
  links: Links,
  counts: TokenCounts,
  choice: Tensor<"i32">,
): Hop {
  const { ranksPerHost, numHosts } = topology;
  const { world, rail, host } = links;
  const sent = Array.from({ length: numHosts }, (): number[] => []);
  forEachToken(topology, choice, (token, ranks) => {
    for (const target of hostsOf(topology, ranks)) sent[target]!.push(token);
  });
  const myHost = hostOfRank(topology, world.rank);
  const receiveCounts = Array.from({ length: numHosts }, (_, from) =>
    counts.toHost(from * ranksPerHost + host.rank, myHost),
  );
  return { communicator: rail, sent, receiveCounts };
}

/** The second hop, of the tokens that arrived: each to every rank of this host it needs. */
export function planHost(
  topology: ExpertTopology,
  links: Links,
  counts: TokenCounts,
  arrived: Tensor<"i32">,
): Hop {
  const { ranksPerHost, numHosts } = topology;
  const { world, host } = links;
  const myHost = hostOfRank(topology, world.rank);
  const sent = Array.from({ length: ranksPerHost }, (): number[] => []);
  forEachToken(topology, arrived, (row, ranks) => {
    for (const rank of ranks) {
      if (hostOfRank(topology, rank) === myHost) sent[rank % ranksPerHost]!.push(row);
    }
  });
  const receiveCounts = Array.from({ length: ranksPerHost }, (_, local) =>
    sumOf(
      Array.from({ length: numHosts }, (_, from) =>
        counts.toRank(from * ranksPerHost + local, world.rank),
      ),
    ),
  );
  return { communicator: host, sent, receiveCounts };
}

/** Choices as numbers of this rank's experts. */
export function localExpertsOf(
  { expertsPerRank }: ExpertTopology,
  rank: number,
  choice: Tensor<"i32">,
): Int32Array {
  const first = rank * expertsPerRank;
  return view(choice).map((expert) =>
    expert >= first && expert < first + expertsPerRank ? expert - first : NO_EXPERT,
  );
}

/** The ranks that each token's choices live on, each once, ascending. */
function forEachToken(
  topology: ExpertTopology,
  choice: Tensor<"i32">,
  visit: (token: number, ranks: readonly number[]) => void,
): void {
  const { rows, columns } = choice;
  const choices = view(choice);
  for (let token = 0; token < rows; token++) {
    const ranks: number[] = [];
    for (let at = token * columns; at < (token + 1) * columns; at++) {
      const expert = choices[at]!;
      if (expert === NO_EXPERT) continue;
      const rank = rankOfExpert(topology, expert);
      if (!ranks.includes(rank)) ranks.push(rank);
    }
    visit(
      token,
      ranks.sort((a, b) => a - b),
    );
  }
}

function hostsOf(topology: ExpertTopology, ranks: readonly number[]): Set<number> {
  return new Set(ranks.map((rank) => hostOfRank(topology, rank)));
}
