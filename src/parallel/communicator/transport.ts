/**
 * @file Bytes between ranks: what a backend implements, and how ranks wait on top of it.
 *
 * A transport knows no tensors and no collectives. It takes envelopes, matches those of one (peer,
 * tag) in order, and moves on what it can whenever it is polled. `Engine` polls it and every
 * collective that is under way together: a rank that waits for one thing carries on with all, or
 * two ranks that wait for different things would wait for ever.
 */
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Backend, Judged, Operation } from "./communicator.ts";

/** Tags are below this: 23 bits are what every MPI library takes; the last are kept for itself. */
export const MAX_TAGS: number = 2 ** 23 - 512;

/** A message, at one of its ends. */
export interface Envelope {
  readonly peer: number;
  readonly tag: number;
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** `isDone` turns true once, when a poll finds it so. */
export interface Ticket {
  readonly isDone: boolean;
}

export interface Transport {
  readonly backend: Backend;
  readonly rank: number;
  readonly size: number;
  readonly memory: CpuMemory;
  /** Polls before a waiting rank sleeps; ranks often outnumber processors, so few. */
  readonly spins: number;
  send(envelope: Envelope): Ticket;
  receive(envelope: Envelope): Ticket;
  /** Moves on what can be moved; throws if a rank has failed. Never waits. */
  poll(): void;
  /** Waits until something may have changed since the last poll, or a moment has passed. */
  rest(): void;
  /** Fails if another rank is lost; the next poll throws then. For those who wait. */
  watch(judged: Judged): void;
  /** A sign of life. */
  tick(): void;
  /** Ends the work of all ranks; the first reason is the one that all give. */
  fail(failure: Failure): void;
}

/** Why ranks stop; plain data, so that it can travel. */
export interface Failure {
  readonly code: `parallel.${string}`;
  readonly message: string;
}

/** A collective under way: `advance` does what can be done and says whether that was all. */
export interface Advancing {
  advance(): boolean;
}

/** One rank's work under way, over all of its communicators. */
export class Engine {
  readonly transport: Transport;
  readonly #active = new Set<Advancing>();
  /** The number the next split gives to a communicator's messages; see `split`. */
  nextContext = 1;

  constructor(transport: Transport) {
    this.transport = transport;
  }

  /** Polls once and moves every collective on. */
  progress(): void {
    this.transport.poll();
    for (const collective of this.#active) {
      if (collective.advance()) this.#active.delete(collective);
    }
  }

  /** An operation that is done when all tickets are. */
  operationOf(tickets: readonly Ticket[]): Operation {
    return this.#operation(() => tickets.every(({ isDone }) => isDone));
  }

  /** An operation that advances with every progress of this rank. */
  start(collective: Advancing): Operation {
    let isDone = false;
    this.#active.add({
      advance: () => {
        isDone ||= collective.advance();
        return isDone;
      },
    });
    this.progress();
    return this.#operation(() => isDone);
  }

  /** An operation that is done when all of `operations` are. */
  join(operations: readonly Operation[]): Operation {
    return {
      isDone: () => operations.filter((operation) => !operation.isDone()).length === 0,
      wait: (judged) => {
        for (const operation of operations) operation.wait(judged);
      },
    };
  }

  #operation(isDone: () => boolean): Operation {
    return {
      isDone: () => {
        if (!isDone()) this.progress();
        return isDone();
      },
      wait: (judged = "ranks") => {
        for (let polls = 1; !isDone(); polls++) {
          this.progress();
          if (isDone() || polls <= this.transport.spins) continue;
          this.transport.rest();
          this.transport.watch(judged);
        }
      },
    };
  }
}
