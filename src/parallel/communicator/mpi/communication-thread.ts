/**
 * @file The thread that talks to MPI for its rank: starts what the rank asks for, polls, and keeps
 * the other ranks informed.
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
import { FAILURE_BYTES, Signs } from "../signs.ts";
import { type Failure, MAX_TAGS } from "../transport.ts";
import { type Completion, type MpiLibrary, openMpi, type Requests } from "./library.ts";
import { type Command, Mailbox, TICKETS } from "./mailbox.ts";
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
}

const BEAT_TAG = MAX_TAGS + 1;
const BEAT_MS = 250;
/** After a failure the reason is still delivered for this long; then MPI ends all processes. */
const FAREWELL_MS = 800;
/** Idle polls before the thread sleeps a moment: a message seldom lets others wait longer. */
const IDLE_POLLS = 200;
const NAP_MS = 0.05;
const IDLE_MS = 20;
/** From so long a standstill of the rank on it is asked what holds it up. */
const STILL_MS = 1000;

const CLOSED = -1;
const FAILED = -2;
/** Life, milliseconds held up, the reason. */
const REASON_OFFSET = 8;
const BEAT_BYTES = REASON_OFFSET + FAILURE_BYTES;

type Owner =
  | { readonly kind: "send"; readonly command: Command }
  | { readonly kind: "receive"; readonly command: Command }
  | { readonly kind: "beatSent"; readonly peer: number }
  | { readonly kind: "beatHeard"; readonly peer: number };

function isBeat({ kind }: Owner): boolean {
  return kind === "beatSent" || kind === "beatHeard";
}

class CommunicationLoop {
  readonly #mpi: MpiLibrary;
  readonly #signs: Signs;
  readonly #mailbox: Mailbox;
  readonly #base: number;
  readonly #requests: Requests;
  readonly #owners: Owner[] = [];
  readonly #beats: Uint8Array;
  readonly #beatBase: number;
  readonly #peers: readonly number[];
  readonly #beating = new Set<number>();
  /** Peers that have been told, and those that have told, that they close. */
  readonly #toldClosed = new Set<number>();
  readonly #heardClosed = new Set<number>();
  #closes = false;
  #failedAt: number | null = null;
  #lastBeat = Number.NEGATIVE_INFINITY;
  readonly #heldUp = new HeldUp(thisThread());
  #heldUpMs = 0;
  /** The rank's counter of life at the last beat, and since when it has been the same. */
  #life = 0;
  #lifeSince = 0;

  constructor(mpi: MpiLibrary, signs: Signs, { memory, mailbox }: CommunicationJoin) {
    this.#mpi = mpi;
    this.#signs = signs;
    this.#mailbox = new Mailbox(mpi.size, mailbox);
    this.#base = mpi.addressOf(new Uint8Array(memory.buffer));
    this.#requests = mpi.makeRequests(TICKETS + 2 * mpi.size);
    this.#beats = new Uint8Array(new SharedArrayBuffer(2 * mpi.size * BEAT_BYTES));
    this.#beatBase = mpi.addressOf(this.#beats);
    this.#peers = Array.from({ length: mpi.size }, (_, peer) => peer).filter(
      (peer) => peer !== mpi.rank,
    );
  }

  /** Until the orderly end, or until MPI has ended the process. */
  run(): void {
    for (const peer of this.#peers) this.#hearBeat(peer);
    for (let idle = 0; !this.#isOver(); ) {
      const bell = this.#signs.bell(MPI_SIDE);
      const worked = this.#takeCommands() + this.#complete();
      this.#beat(performance.now());
      idle = worked > 0 ? 0 : idle + 1;
      if (idle < IDLE_POLLS) continue;
      const isQuiet = this.#owners.every(({ kind }) => kind === "beatHeard");
      this.#signs.awaitBell(MPI_SIDE, bell, isQuiet ? IDLE_MS : NAP_MS);
    }
  }

  #isOver(): boolean {
    const all = this.#peers.length;
    const isSilent = this.#closes && this.#owners.length === 0;
    return isSilent && this.#toldClosed.size === all && this.#heardClosed.size === all;
  }

  #takeCommands(): number {
    let count = 0;
    for (let command = this.#mailbox.take(); command !== null; command = this.#mailbox.take()) {
      count++;
      if (command.kind === "close") {
        this.#closes = true;
        continue;
      }
      const { kind, peer, tag, byteOffset, byteLength } = command;
      const message = { address: this.#base + byteOffset, byteLength, peer, tag };
      const owner: Owner = kind === "send" ? { kind, command } : { kind: "receive", command };
      const slot = this.#owners.push(owner) - 1;
      if (kind === "send") this.#mpi.isend(this.#requests, slot, message);
      else this.#mpi.irecv(this.#requests, slot, message);
    }
    return count;
  }

  #complete(): number {
    if (this.#owners.length === 0) return 0;
    const completions = this.#mpi.testSome(this.#requests, this.#owners.length);
    const done = completions.map((completion) => ({
      completion,
      owner: defined(this.#owners[completion.index], "the owner of a request"),
    }));
    // From the back, so that filling a gap with the last request moves none that is still to go.
    for (const { index } of completions.toSorted((a, b) => b.index - a.index)) this.#forget(index);
    for (const { completion, owner } of done) this.#settle(owner, completion);
    if (done.some(({ owner }) => !isBeat(owner))) this.#signs.ring(RANK_SIDE);
    return done.length;
  }

  #forget(slot: number): void {
    const last = this.#owners.length - 1;
    this.#requests.handles[slot] = this.#requests.handles[last]!;
    this.#owners[slot] = this.#owners[last]!;
    this.#owners.pop();
  }

  #settle(owner: Owner, { byteLength, error }: Completion): void {
    if (owner.kind === "beatSent") this.#beating.delete(owner.peer);
    else if (owner.kind === "beatHeard") this.#heardBeat(owner.peer);
    else if (owner.kind === "receive") this.#received(owner.command, byteLength, error);
    else this.#mailbox.finish(owner.command.ticket);
  }

  #received({ peer, byteLength: expected, ticket }: Command, got: number, error: number): void {
    if (error === 0 && got === expected) {
      this.#mailbox.finish(ticket);
      return;
    }
    const sent = error === 0 ? `${got} bytes` : `more bytes (MPI's error ${error})`;
    const message = `rank ${peer} sent ${sent} where rank ${this.#mpi.rank} expects ${expected}`;
    this.#signs.fail({ code: "parallel.mismatch", message });
  }

  /** A beat to every peer that has taken the last one, when it is time or there is news. */
  #beat(now: number): void {
    const failure = this.#signs.failure();
    if (failure !== null && this.#failedAt === null) this.#failedAt = now;
    if (this.#failedAt !== null && now - this.#failedAt > FAREWELL_MS) this.#mpi.abort();
    if (now - this.#lastBeat < BEAT_MS && !this.#closes) return;
    this.#lastBeat = now;
    this.#lookAtRank(now);
    const life = failure !== null ? FAILED : this.#closes ? CLOSED : this.#life;
    const text = failure === null ? "" : `${failure.code} ${failure.message}`;
    for (const peer of this.#peers) {
      if (this.#beating.has(peer) || this.#toldClosed.has(peer)) continue;
      this.#sendBeat(peer, life, text);
      if (life === CLOSED) this.#toldClosed.add(peer);
    }
  }

  #lookAtRank(now: number): void {
    const life = this.#signs.life(RANK_SIDE);
    if (life !== this.#life) this.#lifeSince = now;
    this.#life = life;
    if (now - this.#lifeSince > STILL_MS) this.#heldUpMs = this.#heldUp.totalMs(now);
  }

  #sendBeat(peer: number, life: number, text: string): void {
    const place = (this.#mpi.size + peer) * BEAT_BYTES;
    const bytes = new TextEncoder().encode(text).subarray(0, FAILURE_BYTES);
    const words = new DataView(this.#beats.buffer);
    words.setInt32(place, life);
    words.setInt32(place + 4, this.#heldUpMs);
    this.#beats.set(bytes, place + REASON_OFFSET);
    this.#beating.add(peer);
    const slot = this.#owners.push({ kind: "beatSent", peer }) - 1;
    const address = this.#beatBase + place;
    const byteLength = BEAT_BYTES;
    this.#beats.fill(0, place + REASON_OFFSET + bytes.length, place + byteLength);
    this.#mpi.isend(this.#requests, slot, { address, byteLength, peer, tag: BEAT_TAG });
  }

  #hearBeat(peer: number): void {
    const slot = this.#owners.push({ kind: "beatHeard", peer }) - 1;
    const address = this.#beatBase + peer * BEAT_BYTES;
    const message = { address, byteLength: BEAT_BYTES, peer, tag: BEAT_TAG };
    this.#mpi.irecv(this.#requests, slot, message);
  }

  #heardBeat(peer: number): void {
    const place = peer * BEAT_BYTES;
    const words = new DataView(this.#beats.buffer);
    const life = words.getInt32(place);
    if (life === CLOSED) {
      this.#heardClosed.add(peer);
      return;
    }
    if (life === FAILED) {
      const bytes = this.#beats.slice(place + REASON_OFFSET, place + BEAT_BYTES);
      const end = bytes.indexOf(0);
      const text = new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
      const space = text.indexOf(" ");
      const code = text.slice(0, space) as Failure["code"];
      this.#signs.fail({ code, message: text.slice(space + 1) });
    } else this.#mailbox.heard(peer, { life, heldUpMs: words.getInt32(place + 4) });
    this.#hearBeat(peer);
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
