/**
 * @file Who sends which token where: made once from the gate's choices, used for every payload of
 * the layer, forward and backward.
 *
 *   T tokens of this rank   A tokens that arrive here over the rail, from all hosts
 *   R tokens that end here: each once, although it may have chosen several experts of this rank
 *
 * All counts of both hops follow from one table that every rank sends to every other in a single
 * message: how many of its tokens go to each rank, and how many to each host. No rank then asks
 * another how much is coming.
 */
import { assert } from "../../../base/errors.ts";
import type { Arena } from "../../../tensor/arena.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import { type ExpertTopology, hostOfRank, rankOfExpert } from "./topology.ts";

/** No expert: a choice that was left out, or one that lives elsewhere. */
export const NO_EXPERT = -1;

/** Rows of one hop: `sent[i]` goes to member i, `receiveCounts[i]` rows come from it. */
export interface Hop {
  readonly communicator: Communicator;
  readonly sent: readonly (readonly number[])[];
  readonly receiveCounts: readonly number[];
}

export interface ExchangePlan {
  readonly numTokens: number;
  /** Over the rail; members are hosts. Rows of the source are tokens. */
  readonly rail: Hop;
  readonly numArrived: number;
  /** Within the host; members are local ranks. Rows of the source are arrived tokens. */
  readonly host: Hop;
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

/** `choice` is [T, K]; collective. */
export function makeExchangePlan(
  topology: ExpertTopology,
  links: Links,
  scratch: Arena,
  choice: Tensor<"i32">,
): ExchangePlan {
  const { ranksPerHost, numHosts, numRanks, expertsPerRank } = topology;
  const { world, rail, host } = links;
  const { rows: numTokens, columns: numChosen } = choice;
  using _mark = scratch.mark();
  const choices = view(choice);
  const ranksOfRow = (values: Int32Array, row: number): Set<number> => {
    const chosen = values.subarray(row * numChosen, (row + 1) * numChosen);
    return new Set(
      Array.from(
        chosen.filter((expert) => expert !== NO_EXPERT),
        (expert) => rankOfExpert(topology, expert),
      ),
    );
  };
  const toRank = new Int32Array(numRanks);
  const toHost = Array.from({ length: numHosts }, (): number[] => []);
  for (let token = 0; token < numTokens; token++) {
    const ranks = ranksOfRow(choices, token);
    for (const rank of ranks) toRank[rank]!++;
    const hosts = new Set(Array.from(ranks, (rank) => hostOfRank(topology, rank)));
    for (const target of hosts) toHost[target]!.push(token);
  }
  const counts = shareCounts(world, scratch, [...toRank, ...toHost.map(({ length }) => length)]);
  const me = world.rank;
  const myHost = hostOfRank(topology, me);
  const senders = Array.from({ length: numHosts }, (_, from) => from * ranksPerHost + host.rank);
  const railHop: Hop = {
    communicator: rail,
    sent: toHost,
    receiveCounts: senders.map((sender) => counts(sender, numRanks + myHost)),
  };
  const numArrived = sumOf(railHop.receiveCounts);
  const arrived = scratch.allocate("i32", [numArrived, numChosen]);
  moveRows(railHop, choice, arrived, scratch);
  const arrivedChoices = view(arrived);
  const toLocal = Array.from({ length: ranksPerHost }, (): number[] => []);
  for (let row = 0; row < numArrived; row++) {
    for (const rank of ranksOfRow(arrivedChoices, row)) {
      if (hostOfRank(topology, rank) === myHost) toLocal[rank % ranksPerHost]!.push(row);
    }
  }
  const hostHop: Hop = {
    communicator: host,
    sent: toLocal,
    receiveCounts: Array.from({ length: ranksPerHost }, (_, local) =>
      sumOf(Array.from({ length: numHosts }, (_, from) => counts(from * ranksPerHost + local, me))),
    ),
  };
  const numReceived = sumOf(hostHop.receiveCounts);
  const received = scratch.allocate("i32", [numReceived, numChosen]);
  moveRows(hostHop, arrived, received, scratch);
  const first = me * expertsPerRank;
  const localExperts = view(received).map((expert) =>
    expert >= first && expert < first + expertsPerRank ? expert - first : NO_EXPERT,
  );
  return { numTokens, rail: railHop, numArrived, host: hostHop, numReceived, localExperts };
}

/** Every rank's counts, told to all: `counts(rank, index)`. */
function shareCounts(
  world: Communicator,
  scratch: Arena,
  mine: readonly number[],
): (rank: number, index: number) => number {
  const own = scratch.allocate("i32", [mine.length]);
  const all = scratch.allocate("i32", [world.size, mine.length]);
  view(own).set(mine);
  world.allGather(own, all).wait();
  const table = view(all).slice();
  return (rank, index) => table[rank * mine.length + index]!;
}

/**
 * One hop: the rows of `source` that each member gets, and those that come, in order of members.
 */
export function moveRows<D extends "i32" | "u8" | "bf16">(
  { communicator, sent, receiveCounts }: Hop,
  source: Tensor<D>,
  target: Tensor<D>,
  scratch: Arena,
): void {
  const { columns } = source;
  assert(target.columns === columns, `rows of ${columns} into rows of ${target.columns}`);
  using _mark = scratch.mark();
  const packed = scratch.allocate(source.dtype, [sumOf(sent.map(({ length }) => length)), columns]);
  const from = view(source);
  const to = view(packed);
  let next = 0;
  for (const row of sent.flat()) {
    to.set(from.subarray(row * columns, (row + 1) * columns), next);
    next += columns;
  }
  const sendCounts = sent.map(({ length }) => length * columns);
  const received = receiveCounts.map((count) => count * columns);
  communicator.allToAll({ source: packed, sendCounts, target, receiveCounts: received }).wait();
}

export function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}
