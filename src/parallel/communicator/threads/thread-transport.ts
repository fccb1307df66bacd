/**
 * @file Messages between threads: described in shared rings, copied once, by the receiver, from the
 * sender's memory.
 *
 * The sender does nothing more after publishing, so a message moves while its sender computes. More
 * messages than a ring has slots wait on the sender's side.
 */
import { OperationalError } from "../../../base/errors.ts";
import type { CpuMemory } from "../../../device/cpu/memory.ts";
import type { Judged } from "../communicator.ts";
import { HeldUp, thisThread } from "../held-up.ts";
import type { Signs } from "../signs.ts";
import type { Envelope, Failure, Ticket, Transport } from "../transport.ts";
import { type Vitals, Watchdog } from "../watchdog.ts";
import {
  type Description,
  RING_SLOTS,
  type Rings,
  SLOT_FREE,
  SLOT_PUBLISHED,
  SLOT_TAKEN,
} from "./rings.ts";

/** A rank that rests looks about it this often even if no bell rings. */
const REST_MS = 50;

interface Sending {
  isDone: boolean;
  readonly envelope: Envelope;
}

interface Receiving {
  isDone: boolean;
  readonly envelope: Envelope;
}

/** A message that has been described and not yet copied. */
interface Arrived extends Description {
  readonly slot: number;
}

/** What one peer has sent, and what is wanted of it. */
interface Peer {
  /** Sends that have no slot yet, in order. */
  readonly queued: Sending[];
  /** The send in each slot. */
  readonly inSlot: Map<number, Sending>;
  numPublished: number;
  numTaken: number;
  readonly arrived: Map<number, Arrived[]>;
  readonly wanted: Map<number, Receiving[]>;
}

export interface ThreadTransportOptions {
  readonly signs: Signs;
  readonly rings: Rings;
  readonly rank: number;
  readonly memory: CpuMemory;
  /** Memory of every rank. */
  readonly memories: readonly WebAssembly.Memory[];
  readonly watchdogMs: number;
}

export class ThreadTransport implements Transport {
  readonly backend = "threads";
  readonly spins = 40;
  readonly rank: number;
  readonly size: number;
  readonly memory: CpuMemory;
  readonly #signs: Signs;
  readonly #rings: Rings;
  readonly #memories: readonly WebAssembly.Memory[];
  readonly #peers: readonly Peer[];
  readonly #watchdog: Watchdog;
  readonly #vitals: Vitals;
  #bell = 0;

  constructor({ signs, rings, rank, memory, memories, watchdogMs }: ThreadTransportOptions) {
    this.rank = rank;
    this.size = memories.length;
    this.memory = memory;
    this.#signs = signs;
    this.#rings = rings;
    this.#memories = memories;
    this.#watchdog = new Watchdog(memories.length, watchdogMs);
    const heldUp = new HeldUp(thisThread());
    this.#vitals = {
      // One process has all of them: that this is asked shows that it lives.
      beats: () => performance.now(),
      signs: (of) => signs.life(of),
      heldUpMs: () => heldUp.totalMs(performance.now()),
    };
    this.#peers = memories.map(() => ({
      queued: [],
      inSlot: new Map(),
      numPublished: 0,
      numTaken: 0,
      arrived: new Map(),
      wanted: new Map(),
    }));
  }

  send(envelope: Envelope): Ticket {
    const sending = { isDone: false, envelope };
    this.#peers[envelope.peer]!.queued.push(sending);
    this.#publishQueued(envelope.peer);
    return sending;
  }

  receive(envelope: Envelope): Ticket {
    const receiving = { isDone: false, envelope };
    const { wanted } = this.#peers[envelope.peer]!;
    const queue = wanted.get(envelope.tag);
    if (queue === undefined) wanted.set(envelope.tag, [receiving]);
    else queue.push(receiving);
    return receiving;
  }

  poll(): void {
    this.tick();
    this.#bell = this.#signs.bell(this.rank);
    const failure = this.#signs.failure();
    if (failure !== null) throw new OperationalError(failure.code, failure.message);
    for (let peer = 0; peer < this.size; peer++) {
      this.#noticeCopied(peer);
      this.#publishQueued(peer);
      this.#takeArrived(peer);
    }
  }

  rest(): void {
    this.#signs.awaitBell(this.rank, this.#bell, REST_MS);
  }

  watch(judged: Judged): void {
    const problem = this.#watchdog.look(this.#vitals, judged, performance.now());
    if (problem !== null) this.fail({ code: "parallel.rankLost", message: problem });
  }

  tick(): void {
    this.#signs.live(this.rank);
  }

  fail(failure: Failure): void {
    this.#signs.fail(failure);
  }

  /** Sends whose bytes the receiver has copied are done. */
  #noticeCopied(to: number): void {
    const { inSlot } = this.#peers[to]!;
    for (const [slot, sending] of inSlot) {
      if (this.#rings.state(this.rank, to, slot) !== SLOT_FREE) continue;
      sending.isDone = true;
      inSlot.delete(slot);
    }
  }

  #publishQueued(to: number): void {
    const peer = this.#peers[to]!;
    let published = false;
    while (peer.queued.length > 0) {
      const slot = peer.numPublished % RING_SLOTS;
      if (peer.inSlot.has(slot)) break;
      const sending = peer.queued.shift()!;
      this.#rings.publish(this.rank, to, slot, sending.envelope);
      peer.inSlot.set(slot, sending);
      peer.numPublished++;
      published = true;
    }
    if (published) this.#signs.ring(to);
  }

  /** Reads what a peer has published, and copies what is wanted. */
  #takeArrived(from: number): void {
    const peer = this.#peers[from]!;
    let copied = false;
    for (;;) {
      const slot = peer.numTaken % RING_SLOTS;
      if (this.#rings.state(from, this.rank, slot) !== SLOT_PUBLISHED) break;
      const description = this.#rings.describe(from, this.rank, slot);
      this.#rings.setState(from, this.rank, slot, SLOT_TAKEN);
      peer.numTaken++;
      const queue = peer.arrived.get(description.tag);
      if (queue === undefined) peer.arrived.set(description.tag, [{ ...description, slot }]);
      else queue.push({ ...description, slot });
    }
    for (const [tag, messages] of peer.arrived) {
      const wanted = peer.wanted.get(tag);
      while (messages.length > 0 && wanted !== undefined && wanted.length > 0) {
        this.#copy(from, messages.shift()!, wanted.shift()!);
        copied = true;
      }
      if (messages.length === 0) peer.arrived.delete(tag);
      if (wanted?.length === 0) peer.wanted.delete(tag);
    }
    if (copied) this.#signs.ring(from);
  }

  #copy(from: number, message: Arrived, receiving: Receiving): void {
    const { byteOffset, byteLength } = receiving.envelope;
    if (message.byteLength !== byteLength) {
      const text = `rank ${from} sent ${message.byteLength} bytes where rank ${this.rank} expects`;
      this.fail({ code: "parallel.mismatch", message: `${text} ${byteLength}` });
      return;
    }
    const source = this.#memories[from]!.buffer;
    this.memory.u8.set(new Uint8Array(source, message.byteOffset, byteLength), byteOffset);
    this.#rings.setState(from, this.rank, message.slot, SLOT_FREE);
    receiving.isDone = true;
  }
}
