/**
 * @file The thread that talks to MPI for its rank while that computes, and keeps the other ranks
 * informed.
 *
 * Besides the rank's messages every pair of ranks exchanges beats: they show that the process
 * lives, and hold the sender's counter of life, for how long it was kept from running, and, once it
 * has failed, the reason. A rank that has heard a reason passes none on: whoever failed first has
 * told all. `CLOSED` is the last beat of an orderly end; a rank that has sent and heard it
 * everywhere has no message left and finalizes.
 */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../../base/errors.ts";
import { HeldUp, thisThread } from "../held-up.ts";
import { Signs } from "../signs.ts";
import type { Failure } from "../transport.ts";
import { CLOSED, Courier, FAILED } from "./courier.ts";
import { Desk, type DeskBuffers } from "./desk.ts";
import { type MpiLibrary, openMpi } from "./library.ts";
import { Mailbox } from "./mailbox.ts";
import { MPI_SIDE, RANK_SIDE } from "./mpi-transport.ts";

/** What the thread is told when it starts. */
export interface CommunicationStart {
  readonly signs: SharedArrayBuffer;
}

/** What it says when MPI runs, and what it is told then. */
export type CommunicationReport =
  | { readonly kind: "ready"; readonly rank: number; readonly size: number }
  | { readonly kind: "failed"; readonly code: Failure["code"]; readonly message: string };
export interface CommunicationJoin {
  readonly memory: WebAssembly.Memory;
  readonly mailbox: SharedArrayBuffer;
  readonly desk: DeskBuffers;
  readonly beats: SharedArrayBuffer;
}

const BEAT_MS = 250;
/** After a failure the reason is still delivered for this long; then MPI ends all processes. */
const FAREWELL_MS = 800;
/** Idle polls before the thread sleeps a moment: a message seldom lets others wait longer. */
const IDLE_POLLS = 200;
const NAP_MS = 0.05;
/** While nothing is under way, or the rank polls by itself: each look costs it a moment. */
const IDLE_MS = 5;
/** From so long a standstill of the rank on it is asked what holds it up. */
const STILL_MS = 1000;

class CommunicationLoop {
  readonly #mpi: MpiLibrary;
  readonly #signs: Signs;
  readonly #desk: Desk;
  readonly #courier: Courier;
  readonly #peers: readonly number[];
  #failedAt: number | null = null;
  #lastBeat = Number.NEGATIVE_INFINITY;
  readonly #heldUp = new HeldUp(thisThread());
  #heldUpMs = 0;
  /** The rank's counter of life at the last beat, and since when it has been the same. */
  #life = 0;
  #lifeSince = 0;

  constructor(mpi: MpiLibrary, signs: Signs, join: CommunicationJoin) {
    this.#mpi = mpi;
    this.#signs = signs;
    this.#desk = new Desk(mpi, join.desk);
    const mailbox = new Mailbox(mpi.size, join.mailbox);
    const finish = (ticket: number): void => mailbox.finish(ticket);
    this.#courier = new Courier({ ...join, mpi, signs, mailbox, desk: this.#desk, finish });
    this.#peers = Array.from({ length: mpi.size }, (_, peer) => peer).filter(
      (peer) => peer !== mpi.rank,
    );
  }

  /** Until the orderly end, or until MPI has ended the process. */
  run(): void {
    while (!this.#isBegun()) this.#signs.awaitBell(MPI_SIDE, this.#signs.bell(MPI_SIDE), NAP_MS);
    let idlePolls = 0;
    let seenPolls = this.#desk.polls;
    while (!this.#isOver()) {
      const bell = this.#signs.bell(MPI_SIDE);
      const now = performance.now();
      const { polls } = this.#desk;
      const isPolled = polls !== seenPolls && this.#desk.isPolling;
      seenPolls = polls;
      if (isPolled && !this.#isBeatDue(now)) {
        this.#signs.awaitBell(MPI_SIDE, bell, IDLE_MS);
        continue;
      }
      const moved = this.#move(now);
      if (moved === "notMine") {
        this.#signs.awaitBell(MPI_SIDE, bell, NAP_MS);
        continue;
      }
      idlePolls = moved === "some" ? 0 : idlePolls + 1;
      if (idlePolls < IDLE_POLLS) continue;
      this.#signs.awaitBell(MPI_SIDE, bell, moved === "none" ? NAP_MS : IDLE_MS);
    }
  }

  #isBegun(): boolean {
    if (!this.#desk.tryLock()) return false;
    for (const peer of this.#peers) this.#courier.hearBeat(peer);
    this.#desk.unlock();
    return true;
  }

  /** Not where the rank is at it. Quiet: nothing is under way but listening. */
  #move(now: number): "some" | "none" | "quiet" | "notMine" {
    if (!this.#desk.tryLock()) return "notMine";
    try {
      const { worked, ended } = this.#courier.turn();
      this.#beat(now);
      if (ended > 0) this.#signs.ring(RANK_SIDE);
      return worked > 0 ? "some" : this.#desk.isQuiet ? "quiet" : "none";
    } finally {
      this.#desk.unlock();
    }
  }

  #isOver(): boolean {
    const { closes } = this.#desk;
    if (!closes || this.#desk.numRequests > 0) return false;
    return this.#peers.every(
      (peer) => this.#desk.has(peer, "toldClosed") && this.#desk.has(peer, "heardClosed"),
    );
  }

  #isBeatDue(now: number): boolean {
    return now - this.#lastBeat >= BEAT_MS || this.#desk.closes;
  }

  /** A beat to every peer that has taken the last one, when it is time or there is news. */
  #beat(now: number): void {
    const failure = this.#signs.failure();
    if (failure !== null && this.#failedAt === null) this.#failedAt = now;
    if (this.#failedAt !== null && now - this.#failedAt > FAREWELL_MS) this.#mpi.abort();
    if (!this.#isBeatDue(now)) return;
    this.#lastBeat = now;
    this.#lookAtRank(now);
    // A counter that has gone round is not to be taken for a word: those are negative.
    const counted = this.#life & 0x7fffffff;
    const life = failure !== null ? FAILED : this.#desk.closes ? CLOSED : counted;
    const text = failure === null ? "" : `${failure.code} ${failure.message}`;
    for (const peer of this.#peers) {
      if (this.#desk.has(peer, "beating") || this.#desk.has(peer, "toldClosed")) continue;
      this.#courier.sendBeat(peer, { life, heldUpMs: this.#heldUpMs, text });
      if (life === CLOSED) this.#desk.set(peer, "toldClosed", true);
    }
  }

  #lookAtRank(now: number): void {
    const life = this.#signs.life(RANK_SIDE);
    if (life !== this.#life) this.#lifeSince = now;
    this.#life = life;
    if (now - this.#lifeSince > STILL_MS) this.#heldUpMs = this.#heldUp.totalMs(now);
  }
}

const { signs: signsBuffer } = workerData as CommunicationStart;
const signs = new Signs(2, signsBuffer);
const port = defined(parentPort, "parentPort");

function report(message: CommunicationReport): void {
  port.postMessage(message);
}

try {
  const mpi = openMpi();
  const joined = new Promise<CommunicationJoin>((resolve) => {
    port.once("message", resolve);
  });
  report({ kind: "ready", rank: mpi.rank, size: mpi.size });
  new CommunicationLoop(mpi, signs, await joined).run();
  mpi.finalize();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  report({ kind: "failed", code: "parallel.mpi", message });
  signs.fail({ code: "parallel.mpi", message });
}
