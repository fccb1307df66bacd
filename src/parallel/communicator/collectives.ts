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

/** Elements of a share that travel in one round. */
const ROUND_ELEMENTS = 32 * 1024;

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
  const own = sends[rank] ?? null;
  if (own !== null) copyWithin(lane, own, defined(receives[rank], "the own part's place"));
  // Each rank starts with its neighbour, so that not all send to rank 0 first.
  for (let step = 1; step < size; step++) {
    const source = (rank - step + size) % size;
    const received = receives[source];
    if (received) tickets.push(transport.receive({ peer: members[source]!, tag, ...received }));
    const target = (rank + step) % size;
    const sent = sends[target];
    if (sent) tickets.push(transport.send({ peer: members[target]!, tag, ...sent }));
  }
  return tickets;
}

function copyWithin({ engine }: Lane, from: Part, to: Part): void {
  assert(from.byteLength === to.byteLength, `${from.byteLength} bytes into ${to.byteLength}`);
  engine.transport.memory.u8.copyWithin(
    to.byteOffset,
    from.byteOffset,
    from.byteOffset + from.byteLength,
  );
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

/** Rounds over the longest share; ranks with shorter shares take part with what is left. */
export class ReduceScatterRounds implements Advancing {
  readonly #lane: Lane;
  readonly #call: ReduceScatterCall;
  readonly #starts: readonly number[];
  readonly #numRounds: number;
  #round = -1;
  #tickets: readonly Ticket[] = [];
  #landing: readonly number[] = [];
  #places: number[] = [];

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
    if (!this.#tickets.every(({ isDone }) => isDone)) return false;
    if (this.#round >= 0) this.#reduce();
    this.#round++;
    if (this.#round >= this.#numRounds) return true;
    this.#issue();
    return false;
  }

  /** The piece of member `index`'s share that travels in this round. */
  #piece(index: number): { first: number; count: number } {
    const first = this.#round * ROUND_ELEMENTS;
    const left = this.#call.shares[index]! - first;
    return { first, count: Math.max(0, Math.min(left, ROUND_ELEMENTS)) };
  }

  #issue(): void {
    const { members, rank, scratch } = this.#lane;
    const { dtype, source, shares } = this.#call;
    const bytes = DTYPE_BYTES[dtype];
    const mine = this.#piece(rank);
    this.#landing = members.map((_, index) =>
      index === rank || mine.count === 0 ? -1 : scratch.take(ROUND_ELEMENTS * bytes),
    );
    const ownPiece = source + (this.#starts[rank]! + mine.first) * bytes;
    this.#places = this.#landing.map((place, index) => (index === rank ? ownPiece : place));
    const sends = shares.map((_, index) => {
      const { first, count } = this.#piece(index);
      if (index === rank || count === 0) return null;
      const byteOffset = source + (this.#starts[index]! + first) * bytes;
      return { byteOffset, byteLength: count * bytes };
    });
    const receives = this.#landing.map((place) =>
      place < 0 ? null : { byteOffset: place, byteLength: mine.count * bytes },
    );
    this.#tickets = exchange(this.#lane, sends, receives);
  }

  #reduce(): void {
    const { engine, rank, scratch } = this.#lane;
    const { dtype, target, reduction } = this.#call;
    const { first, count } = this.#piece(rank);
    if (count === 0) return;
    const out = target + first * DTYPE_BYTES[dtype];
    const call = { dtype, count, sources: this.#places, out, reduction };
    reduceVectors(engine.transport.memory, call, new Float64Array(count));
    for (const place of this.#landing) {
      if (place >= 0) scratch.giveBack(place, ROUND_ELEMENTS * DTYPE_BYTES[dtype]);
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
