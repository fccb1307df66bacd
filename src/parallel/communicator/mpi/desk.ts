/**
 * @file What the two threads of a rank share while either of them moves its messages: a lock, and
 * the requests that are under way with what they are for.
 *
 * Everything is in shared memory, so that whoever holds the lock sees all of it. Words of a peer
 * say how far beats with it have come.
 */
import { assert, defined } from "../../../base/errors.ts";
import {
  HANDLE_BYTES,
  type MpiLibrary,
  type NativeMessage,
  type Requests,
  STATUS_COUNT,
  STATUS_ERROR,
  STATUS_WORDS,
} from "./library.ts";
import { TICKETS } from "./mailbox.ts";

/** What a request is for. */
export interface Owner {
  readonly kind: OwnerKind;
  readonly peer: number;
  /** Of messages: the rank's number for it, and the bytes that are expected. */
  readonly ticket: number;
  readonly byteLength: number;
}

/** What became of a request. */
export interface Completion {
  readonly owner: Owner;
  readonly byteLength: number;
  /** 0, or MPI's error code, such as a message longer than its buffer. */
  readonly error: number;
}

/** Nothing is complete, as most looks find. */
const NOTHING: readonly Completion[] = [];

const KINDS = ["send", "receive", "beatSent", "beatHeard"] as const;
export type OwnerKind = (typeof KINDS)[number];

const LOCK = 0;
const NUM_OWNERS = 1;
const POLLS = 2;
const IS_POLLING = 3;
const CLOSES = 4;
const HEADER_WORDS = 16;
const OWNER_WORDS = 4;

/** One bit a peer and purpose. */
const PEER_FLAGS = { beating: 1, toldClosed: 2, heardClosed: 4 } as const;
export type PeerFlag = keyof typeof PEER_FLAGS;

export interface DeskBuffers {
  readonly words: SharedArrayBuffer;
  readonly handles: SharedArrayBuffer;
  readonly indices: SharedArrayBuffer;
  readonly statuses: SharedArrayBuffer;
}

export class Desk {
  readonly buffers: DeskBuffers;
  readonly #mpi: MpiLibrary;
  readonly #words: Int32Array;
  readonly #handles: BigUint64Array;
  /** How many were complete, which, and what became of each. */
  readonly #count: Int32Array;
  readonly #indices: Int32Array;
  readonly #statuses: Int32Array;
  /** Where these are. */
  readonly #requests: Requests;
  readonly #firstPeer: number;

  constructor(mpi: MpiLibrary, buffers?: DeskBuffers) {
    const numRanks = mpi.size;
    const capacity = TICKETS + 2 * numRanks;
    this.#firstPeer = HEADER_WORDS + OWNER_WORDS * capacity;
    this.buffers = buffers ?? {
      words: new SharedArrayBuffer(4 * (this.#firstPeer + numRanks)),
      handles: new SharedArrayBuffer(8 * capacity),
      indices: new SharedArrayBuffer(4 * capacity),
      statuses: new SharedArrayBuffer(4 * STATUS_WORDS * capacity),
    };
    this.#mpi = mpi;
    this.#words = new Int32Array(this.buffers.words);
    this.#handles = new BigUint64Array(this.buffers.handles);
    this.#count = new Int32Array(new SharedArrayBuffer(4));
    this.#indices = new Int32Array(this.buffers.indices);
    this.#statuses = new Int32Array(this.buffers.statuses);
    const addressOf = (buffer: ArrayBufferLike): number => mpi.addressOf(new Uint8Array(buffer));
    this.#requests = {
      handles: addressOf(this.buffers.handles),
      count: addressOf(this.#count.buffer),
      indices: addressOf(this.buffers.indices),
      statuses: addressOf(this.buffers.statuses),
    };
  }

  tryLock(): boolean {
    return Atomics.compareExchange(this.#words, LOCK, 0, 1) === 0;
  }

  unlock(): void {
    Atomics.store(this.#words, LOCK, 0);
  }

  /** How often the rank has polled; the other thread leaves polling to it while it does. */
  get polls(): number {
    return Atomics.load(this.#words, POLLS);
  }

  countPoll(): void {
    Atomics.add(this.#words, POLLS, 1);
    if (!this.isPolling) Atomics.store(this.#words, IS_POLLING, 1);
  }

  /** Whether the rank has said nothing else since it last polled: that it computes, or sleeps. */
  get isPolling(): boolean {
    return Atomics.load(this.#words, IS_POLLING) === 1;
  }

  stopPolling(): void {
    Atomics.store(this.#words, IS_POLLING, 0);
  }

  /** Whether the rank has said that no message follows. */
  get closes(): boolean {
    return Atomics.load(this.#words, CLOSES) === 1;
  }

  close(): void {
    Atomics.store(this.#words, CLOSES, 1);
  }

  has(peer: number, flag: PeerFlag): boolean {
    return (this.#words[this.#firstPeer + peer]! & PEER_FLAGS[flag]) !== 0;
  }

  set(peer: number, flag: PeerFlag, isSet: boolean): void {
    const word = this.#firstPeer + peer;
    const others = this.#words[word]! & ~PEER_FLAGS[flag];
    this.#words[word] = isSet ? others | PEER_FLAGS[flag] : others;
  }

  /** Under the lock, as everything below: requests under way. */
  get numRequests(): number {
    return this.#words[NUM_OWNERS]!;
  }

  /** Whether nothing is under way but listening for beats. */
  get isQuiet(): boolean {
    const numRequests = this.numRequests;
    for (let slot = 0; slot < numRequests; slot++) {
      if (this.#ownerAt(slot).kind !== "beatHeard") return false;
    }
    return true;
  }

  /** Starts a message and remembers what it is for. */
  begin(kind: OwnerKind, ticket: number, message: NativeMessage): void {
    const slot = this.numRequests;
    const word = HEADER_WORDS + OWNER_WORDS * slot;
    this.#words[word] = KINDS.indexOf(kind);
    this.#words[word + 1] = message.peer;
    this.#words[word + 2] = ticket;
    this.#words[word + 3] = message.byteLength;
    const handle = this.#requests.handles + HANDLE_BYTES * slot;
    if (kind === "send" || kind === "beatSent") this.#mpi.isend(handle, message);
    else this.#mpi.irecv(handle, message);
    // What MPI has refused is not under way: its handle would be that of another request.
    this.#words[NUM_OWNERS] = slot + 1;
  }

  /** Those that have come to their end, which are then forgotten. */
  complete(): readonly Completion[] {
    if (this.numRequests === 0) return NOTHING;
    const hasErrors = this.#mpi.testSome(this.#requests, this.numRequests);
    // Less than 0 where there is no request.
    const count = this.#count[0]!;
    if (count <= 0) return NOTHING;
    const indices = this.#indices.slice(0, count);
    const done = Array.from(indices, (index, place): Completion => {
      const status = place * STATUS_WORDS;
      return {
        owner: this.#ownerAt(index),
        byteLength: this.#statuses[status + STATUS_COUNT]!,
        error: hasErrors ? this.#statuses[status + STATUS_ERROR]! : 0,
      };
    });
    // From the back, so that filling a gap with the last request moves none that is still to go.
    for (const index of indices.sort().reverse()) this.#forget(index);
    return done;
  }

  #ownerAt(slot: number): Owner {
    assert(slot < this.numRequests, `request ${slot} of ${this.numRequests}`);
    const word = HEADER_WORDS + OWNER_WORDS * slot;
    return {
      kind: defined(KINDS[this.#words[word]!], "a kind of request"),
      peer: this.#words[word + 1]!,
      ticket: this.#words[word + 2]!,
      byteLength: this.#words[word + 3]!,
    };
  }

  #forget(slot: number): void {
    const last = this.numRequests - 1;
    this.#handles[slot] = this.#handles[last]!;
    const from = HEADER_WORDS + OWNER_WORDS * last;
    this.#words.copyWithin(HEADER_WORDS + OWNER_WORDS * slot, from, from + OWNER_WORDS);
    this.#words[NUM_OWNERS] = last;
  }
}
