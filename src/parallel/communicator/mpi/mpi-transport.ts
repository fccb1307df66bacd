/**
 * @file The rank's side of MPI: starts messages and moves them while it waits.
 *
 * A library makes progress only inside calls, and a rank that computes makes none: then, and while
 * the rank sleeps, the communication thread polls for it.
 */
import { assert, defined, OperationalError } from "../../../base/errors.ts";
import type { CpuMemory } from "../../../device/cpu/memory.ts";
import type { Judged } from "../communicator.ts";
import type { Signs } from "../signs.ts";
import type { Envelope, Failure, Ticket, Transport } from "../transport.ts";
import { type Vitals, Watchdog } from "../watchdog.ts";
import { Courier } from "./courier.ts";
import type { Desk } from "./desk.ts";
import type { MpiLibrary } from "./library.ts";
import { type CommandKind, type Mailbox, TICKETS } from "./mailbox.ts";

/** Which of the two members of `Signs` is who. */
export const RANK_SIDE = 0;
export const MPI_SIDE = 1;

const REST_MS = 50;
/** About a millisecond: to sleep and be woken by the other thread costs up to a tenth of it. */
const SPINS = 4000;
/** MPI counts bytes in an int. */
const MESSAGE_BYTES_MAX = 2 ** 31 - 1;

/** Tries for the lock before the communication thread is left to it: it holds it for a moment. */
const LOCK_TRIES = 100;

interface Pending {
  isDone: boolean;
}

interface Queued {
  readonly kind: CommandKind;
  readonly envelope: Envelope;
  readonly pending: Pending;
}

export interface MpiTransportOptions {
  readonly rank: number;
  readonly size: number;
  readonly memory: CpuMemory;
  readonly mailbox: Mailbox;
  readonly signs: Signs;
  readonly desk: Desk;
  readonly mpi: MpiLibrary;
  readonly beats: SharedArrayBuffer;
  readonly watchdogMs: number;
}

export class MpiTransport implements Transport {
  readonly backend = "mpi";
  readonly rank: number;
  readonly size: number;
  readonly memory: CpuMemory;
  readonly #mailbox: Mailbox;
  readonly #signs: Signs;
  readonly #desk: Desk;
  readonly #courier: Courier;
  readonly #watchdog: Watchdog;
  readonly #vitals: Vitals;
  readonly #freeTickets: number[] = Array.from({ length: TICKETS }, (_, ticket) => ticket);
  /** By ticket. */
  readonly #underWay: (Pending | null)[] = Array.from({ length: TICKETS }, () => null);
  /** What waits for a free ticket, in order. */
  readonly #queued: Queued[] = [];
  #bell = 0;
  /** Whether the communication thread was at it when this rank last wanted to move messages. */
  #isHelped = false;

  constructor(options: MpiTransportOptions) {
    const { rank, size, memory, mailbox, signs, watchdogMs } = options;
    this.rank = rank;
    this.size = size;
    this.memory = memory;
    this.#mailbox = mailbox;
    this.#signs = signs;
    this.#desk = options.desk;
    const { mpi, desk, beats } = options;
    const finish = (ticket: number): void => this.#finish(ticket);
    const parts = { mpi, desk, beats, signs, mailbox, memory: memory.wasm, finish };
    this.#courier = new Courier(parts);
    this.#watchdog = new Watchdog(size, watchdogMs);
    // This rank's own numbers: that it asks shows that it lives.
    this.#vitals = {
      beats: (of) => (of === rank ? performance.now() : mailbox.beats(of)),
      signs: (of) => (of === rank ? signs.life(RANK_SIDE) : mailbox.life(of)),
      heldUpMs: (of) => (of === rank ? 0 : mailbox.heldUpMs(of)),
    };
  }

  /** None while the communication thread is at work: it may need this processor. */
  get spins(): number {
    return this.#isHelped ? 0 : SPINS;
  }

  send(envelope: Envelope): Ticket {
    return this.#post("send", envelope);
  }

  receive(envelope: Envelope): Ticket {
    return this.#post("receive", envelope);
  }

  poll(): void {
    this.#signs.live(RANK_SIDE);
    this.#bell = this.#signs.bell(RANK_SIDE);
    const failure = this.#signs.failure();
    if (failure !== null) throw new OperationalError(failure.code, failure.message);
    this.#desk.countPoll();
    this.#move("turn");
    for (;;) {
      const ticket = this.#mailbox.takeFinished();
      if (ticket === null) break;
      this.#finish(ticket);
    }
    if (this.#queued.length > 0) this.#handOver();
  }

  rest(): void {
    this.#callForHelp();
    this.#signs.awaitBell(RANK_SIDE, this.#bell, REST_MS);
  }

  watch(judged: Judged): void {
    const problem = this.#watchdog.look(this.#vitals, judged, performance.now());
    if (problem !== null) this.fail({ code: "parallel.rankLost", message: problem });
  }

  tick(): void {
    this.#signs.live(RANK_SIDE);
    if (this.#freeTickets.length < TICKETS && this.#desk.isPolling) this.#callForHelp();
  }

  fail(failure: Failure): void {
    this.#signs.fail(failure);
  }

  #post(kind: "send" | "receive", envelope: Envelope): Ticket {
    const { byteLength } = envelope;
    assert(byteLength <= MESSAGE_BYTES_MAX, `a message of ${byteLength} bytes: send it in parts`);
    const pending = { isDone: false };
    if (this.#queued.length > 0 || !this.#start(kind, envelope, pending)) {
      this.#queued.push({ kind, envelope, pending });
      this.#handOver();
    }
    return pending;
  }

  /** Whether it could, without the communication thread. */
  #start(kind: "send" | "receive", envelope: Envelope, pending: Pending): boolean {
    if (this.#freeTickets.length === 0 || !this.#tryLock()) return false;
    try {
      this.#courier.begin();
      this.#courier.start(kind, this.#issue(pending), envelope);
    } finally {
      this.#desk.unlock();
    }
    return true;
  }

  #finish(ticket: number): void {
    defined(this.#underWay[ticket] ?? undefined, "a ticket under way").isDone = true;
    this.#underWay[ticket] = null;
    this.#freeTickets.push(ticket);
  }

  #issue(pending: Pending): number {
    const ticket = defined(this.#freeTickets.pop(), "a free ticket");
    this.#underWay[ticket] = pending;
    return ticket;
  }

  /** The communication thread polls from here on. */
  #callForHelp(): void {
    this.#desk.stopPolling();
    this.#signs.ring(MPI_SIDE);
  }

  /** Whether it could: the communication thread may be at it. */
  #move(work: "begin" | "turn"): boolean {
    if (!this.#tryLock()) return false;
    try {
      this.#courier[work]();
      return true;
    } finally {
      this.#desk.unlock();
    }
  }

  #tryLock(): boolean {
    this.#isHelped = false;
    if (this.#desk.tryLock()) return true;
    // The communication thread leaves off when it sees this.
    this.#desk.countPoll();
    for (let tries = 1; tries < LOCK_TRIES; tries++) if (this.#desk.tryLock()) return true;
    this.#isHelped = true;
    return false;
  }

  #handOver(): void {
    let handed = false;
    while (this.#queued.length > 0 && this.#freeTickets.length > 0) {
      const { kind, envelope, pending } = this.#queued.shift()!;
      this.#mailbox.post({ kind, ticket: this.#issue(pending), ...envelope });
      handed = true;
    }
    if (handed && !this.#move("begin")) this.#signs.ring(MPI_SIDE);
  }
}
