/**
 * @file Collectives as exchanges of messages, the same over every transport.
 *
 * A reduction goes in rounds: for a piece of the vector at a time, every rank sends each other rank
 * its share of the piece, receives its own share from all, and reduces it in the order of ranks.
 * Scratch is then a few pieces, however long the vector is.
 */
import { assert, defined } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.ts";
import type { Reduction } from "./communicator.ts";
import { reduceVectors } from "./reduce.ts";
import type { Scratch } from "./scratch.ts";
import type { Advancing, Engine, Ticket } from "./transport.ts";

/**
 * Elements of a share that travel in one round: enough that a message's latency does not count, few
 * enough that scratch stays small. Measured: bench/parallel.ts.
 */
const ROUND_ELEMENTS = 128 * 1024;

const SHORT_BYTES = 64 * 1024;

/** Where messages of one communicator's collectives go. */
export interface Lane {
  readonly engine: Engine;
  readonly scratch: Scratch;
  readonly rank: number;
  /** World rank of each member. */
  readonly members: readonly number[];
  readonly tag: number;
}

/** A part of this rank's memory. */
export interface Part {
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** Sends `sends[i]` to member i and receives `receives[i]` from it; the own part is copied. */
export function exchange(
  lane: Lane,
  sends: readonly (Part | null)[],
  receives: readonly (Part | null)[],
): Ticket[] {
  const { engine, members, rank, tag } = lane;
  const { transport } = engine;
  const size = members.length;
  const tickets: Ticket[] = [];
  // Each rank starts with its neighbour, so that not all send to rank 0 first.
  for (let step = 1; step < size; step++) {
    const source = (rank - step + size) % size;
    const received = receives[source];
    if (received) {
      const { byteOffset, byteLength } = received;
      tickets.push(transport.receive({ peer: members[source]!, tag, byteOffset, byteLength }));
    }
    const target = (rank + step) % size;
    const sent = sends[target];
    if (sent) {
      const { byteOffset, byteLength } = sent;
      tickets.push(transport.send({ peer: members[target]!, tag, byteOffset, byteLength }));
    }
  }
  // Last, so that messages travel meanwhile.
  const own = sends[rank] ?? null;
  if (own !== null) copyWithin(lane, own, defined(receives[rank], "the own part's place"));
  return tickets;
}

function copyWithin({ engine }: Lane, from: Part, to: Part): void {
  assert(from.byteLength === to.byteLength, `${from.byteLength} bytes into ${to.byteLength}`);
  if (from.byteOffset === to.byteOffset) return;
  const { u8 } = engine.transport.memory;
  const end = from.byteOffset + from.byteLength;
  // Of long parts copyWithin copies half as many bytes a second; of short ones, a view costs more.
  if (from.byteLength <= SHORT_BYTES) u8.copyWithin(to.byteOffset, from.byteOffset, end);
  else u8.set(u8.subarray(from.byteOffset, end), to.byteOffset);
}

/** What every rank reduces: `shares[i]` elements for member i, one share after the other. */
export interface ReduceScatterCall {
  readonly dtype: DType;
  readonly source: number;
  readonly shares: readonly number[];
  /** Where this rank's share goes; may be its place in the source. */
  readonly target: number;
  readonly reduction: Reduction;
}

/** One round under way: its messages, and where each rank's vector stands when they are done. */
interface Round {
  readonly first: number;
  readonly count: number;
  readonly tickets: readonly Ticket[];
  readonly places: readonly number[];
}

/**
 * Rounds over the longest share; ranks with shorter shares take part with what is left. The next
 * round travels while one is reduced.
 */
export class ReduceScatterRounds implements Advancing {
  readonly #lane: Lane;
  readonly #call: ReduceScatterCall;
  readonly #starts: readonly number[];
  readonly #numRounds: number;
  #numIssued = 0;
  #underWay: Round | null = null;

  constructor(lane: Lane, call: ReduceScatterCall) {
    this.#lane = lane;
    this.#call = call;
    let start = 0;
    this.#starts = call.shares.map((share) => {
      const first = start;
      start += share;
      return first;
    });
    this.#numRounds = ceilDiv(Math.max(...call.shares), ROUND_ELEMENTS);
  }

  advance(): boolean {
    for (;;) {
      const arrived = this.#underWay;
      if (arrived !== null && !arrived.tickets.every(({ isDone }) => isDone)) return false;
      this.#underWay = this.#numIssued < this.#numRounds ? this.#issue(this.#numIssued++) : null;
      if (arrived !== null) this.#reduce(arrived);
      if (this.#underWay === null) return true;
    }
  }

  /** The piece of member `index`'s share that travels in a round. */
  #piece(index: number, round: number): { first: number; count: number } {
    const first = round * ROUND_ELEMENTS;
    const left = this.#call.shares[index]! - first;
    return { first, count: Math.max(0, Math.min(left, ROUND_ELEMENTS)) };
  }

  #issue(round: number): Round {
    const { members, rank, scratch } = this.#lane;
    const { dtype, source, shares } = this.#call;
    const bytes = DTYPE_BYTES[dtype];
    const { first, count } = this.#piece(rank, round);
    const places = members.map((_, index) => {
      if (index === rank) return source + (this.#starts[rank]! + first) * bytes;
      return count === 0 ? 0 : scratch.take(ROUND_ELEMENTS * bytes);
    });
    const sends = shares.map((_, index) => {
      const piece = this.#piece(index, round);
      if (index === rank || piece.count === 0) return null;
      const byteOffset = source + (this.#starts[index]! + piece.first) * bytes;
      return { byteOffset, byteLength: piece.count * bytes };
    });
    const receives = places.map((byteOffset, index) =>
      index === rank || count === 0 ? null : { byteOffset, byteLength: count * bytes },
    );
    return { first, count, places, tickets: exchange(this.#lane, sends, receives) };
  }

  #reduce({ first, count, places }: Round): void {
    if (count === 0) return;
    const { engine, rank, scratch } = this.#lane;
    const { dtype, target, reduction } = this.#call;
    const bytes = DTYPE_BYTES[dtype];
    const out = target + first * bytes;
    reduceVectors(engine.transport.memory, { dtype, count, sources: places, out, reduction });
    for (const [index, place] of places.entries()) {
      if (index !== rank) scratch.giveBack(place, ROUND_ELEMENTS * bytes);
    }
  }
}

/** One collective after the other, the second made when the first is done. */
export class InOrder implements Advancing {
  #current: Advancing;
  #next: (() => Advancing) | null;

  constructor(first: Advancing, next: () => Advancing) {
    this.#current = first;
    this.#next = next;
  }

  advance(): boolean {
    if (!this.#current.advance()) return false;
    if (this.#next === null) return true;
    this.#current = this.#next();
    this.#next = null;
    return this.advance();
  }
}

/**
 * Collectives of several rounds take turns, in the order of issue: their rounds share a tag, and
 * ranks that went on with different ones would mistake one's messages for the other's.
 */
export class Turns {
  readonly #waiting: Advancing[] = [];

  add(collective: Advancing): Advancing {
    this.#waiting.push(collective);
    return {
      advance: () => {
        if (this.#waiting[0] !== collective || !collective.advance()) return false;
        this.#waiting.shift();
        return true;
      },
    };
  }
}

/** Done when all tickets are. */
export function allOf(tickets: readonly Ticket[]): Advancing {
  return { advance: () => tickets.every(({ isDone }) => isDone) };
}
