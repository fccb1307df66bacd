/**
 * @file The rank's side of MPI: starts messages and moves them while it waits.
 *
 * A library makes progress only inside calls, and a rank that computes makes none: then, and while
 * the rank sleeps, the communication thread polls for it.
 */
import { assert, OperationalError } from "../../../base/errors.ts";
import type { CpuMemory } from "../../../device/cpu/memory.ts";
import type { Judged } from "../communicator.ts";
import type { Signs } from "../signs.ts";
import type { Envelope, Failure, Ticket, Transport } from "../transport.ts";
import { type Vitals, Watchdog } from "../watchdog.ts";
import type { Courier } from "./courier.ts";
import type { Desk } from "./desk.ts";
import { type CommandKind, type Mailbox, TICKETS } from "./mailbox.ts";

/** Which of the two members of `Signs` is who. */
export const RANK_SIDE = 0;
export const MPI_SIDE = 1;

const REST_MS = 50;
/** About a millisecond: to sleep and be woken by the other thread costs up to a tenth of it. */
const SPINS = 1000;
/** MPI counts bytes in an int. */
const MESSAGE_BYTES_MAX = 2 ** 31 - 1;

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
  readonly courier: Courier;
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
  readonly #underWay = new Map<number, Pending>();
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
    this.#courier = options.courier;
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
      const pending = this.#underWay.get(ticket);
      assert(pending !== undefined, `ticket ${ticket} is not under way`);
      pending.isDone = true;
      this.#underWay.delete(ticket);
      this.#freeTickets.push(ticket);
    }
    this.#handOver();
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
    if (this.#underWay.size > 0 && this.#desk.isPolling) this.#callForHelp();
  }

  fail(failure: Failure): void {
    this.#signs.fail(failure);
  }

  #post(kind: CommandKind, envelope: Envelope): Ticket {
    const { byteLength } = envelope;
    assert(byteLength <= MESSAGE_BYTES_MAX, `a message of ${byteLength} bytes: send it in parts`);
    const pending = { isDone: false };
    this.#queued.push({ kind, envelope, pending });
    this.#handOver();
    return pending;
  }

  /** The communication thread polls from here on. */
  #callForHelp(): void {
    this.#desk.stopPolling();
    this.#signs.ring(MPI_SIDE);
  }

  /** Whether it could: the communication thread may be at it. */
  #move(work: "begin" | "turn"): boolean {
    this.#isHelped = !this.#desk.tryLock();
    if (this.#isHelped) return false;
    try {
      this.#courier[work]();
      return true;
    } finally {
      this.#desk.unlock();
    }
  }

  #handOver(): void {
    let handed = false;
    while (this.#queued.length > 0 && this.#freeTickets.length > 0) {
      const { kind, envelope, pending } = this.#queued.shift()!;
      const ticket = this.#freeTickets.pop()!;
      this.#underWay.set(ticket, pending);
      this.#mailbox.post({ kind, ticket, ...envelope });
      handed = true;
    }
    if (handed && !this.#move("begin")) this.#signs.ring(MPI_SIDE);
  }
}
