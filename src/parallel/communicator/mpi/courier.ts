/**
 * @file Moves a rank's messages: starts what it asks for, looks what is done, keeps beats coming
 * in.
 *
 * The rank's thread has one and its communication thread another, over the same desk; whoever holds
 * the lock does the work. A rank that waits moves its messages itself, at the price of a call;
 * while it computes the other thread does.
 */

import type { Signs } from "../signs.ts";
import { FAILURE_BYTES } from "../signs.ts";
import type { Envelope, Failure } from "../transport.ts";
import { MAX_TAGS } from "../transport.ts";
import type { Completion, Desk, Owner, OwnerKind } from "./desk.ts";
import type { MpiLibrary } from "./library.ts";
import type { Mailbox } from "./mailbox.ts";

const BEAT_TAG = MAX_TAGS + 1;

/** What a beat says in place of a counter of life. */
export const CLOSED = -1;
export const FAILED = -2;
/** Life, milliseconds held up, the reason. */
const REASON_OFFSET = 8;
const BEAT_BYTES = REASON_OFFSET + FAILURE_BYTES;

export interface CourierParts {
  readonly mpi: MpiLibrary;
  readonly signs: Signs;
  readonly mailbox: Mailbox;
  readonly desk: Desk;
  readonly memory: WebAssembly.Memory;
  /** Under the lock: the rank's message of this ticket has come to its end. */
  readonly finish: (ticket: number) => void;
  /** Beats that are heard, a place for each rank, then those that are sent. */
  readonly beats: SharedArrayBuffer;
}

/** Bytes of `beats`. */
export function beatBytes(numRanks: number): number {
  return 2 * numRanks * BEAT_BYTES;
}

export interface Beat {
  readonly life: number;
  readonly heldUpMs: number;
  readonly text: string;
}

export class Courier {
  readonly #mpi: MpiLibrary;
  readonly #signs: Signs;
  readonly #mailbox: Mailbox;
  readonly #desk: Desk;
  readonly #finish: (ticket: number) => void;
  readonly #base: number;
  readonly #beats: Uint8Array<SharedArrayBuffer>;
  readonly #beatBase: number;

  constructor({ mpi, signs, mailbox, desk, memory, finish, beats }: CourierParts) {
    this.#finish = finish;
    this.#mpi = mpi;
    this.#signs = signs;
    this.#mailbox = mailbox;
    this.#desk = desk;
    this.#base = mpi.addressOf(new Uint8Array(memory.buffer));
    this.#beats = new Uint8Array(beats);
    this.#beatBase = mpi.addressOf(this.#beats);
  }

  /**
   * Under the lock: starts and ends what can be; how much that was, and of it messages that ended.
   */
  turn(): { readonly worked: number; readonly ended: number } {
    const begun = this.begin();
    const done = this.#desk.complete();
    let ended = 0;
    for (const completion of done) {
      this.#settle(completion);
      const { kind } = completion.owner;
      if (kind === "send" || kind === "receive") ended++;
    }
    return { worked: begun + done.length, ended };
  }

  /** Under the lock. */
  sendBeat(peer: number, { life, heldUpMs, text }: Beat): void {
    const place = (this.#mpi.size + peer) * BEAT_BYTES;
    const bytes = new TextEncoder().encode(text).subarray(0, FAILURE_BYTES);
    const words = new DataView(this.#beats.buffer);
    words.setInt32(place, life);
    words.setInt32(place + 4, heldUpMs);
    this.#beats.set(bytes, place + REASON_OFFSET);
    this.#beats.fill(0, place + REASON_OFFSET + bytes.length, place + BEAT_BYTES);
    this.#desk.set(peer, "beating", true);
    this.#beginBeat("beatSent", peer, place);
  }

  /** Under the lock. */
  hearBeat(peer: number): void {
    this.#beginBeat("beatHeard", peer, peer * BEAT_BYTES);
  }

  #beginBeat(kind: OwnerKind, peer: number, place: number): void {
    const address = this.#beatBase + place;
    this.#desk.begin(kind, 0, { address, byteLength: BEAT_BYTES, peer, tag: BEAT_TAG });
  }

  /**
   * Under the lock: starts what the rank has asked for, and how much that was. It ends nothing: to
   * take in a long message may be work, and others wait for the messages that are still to start.
   */
  begin(): number {
    let count = 0;
    for (let command = this.#mailbox.take(); command !== null; command = this.#mailbox.take()) {
      count++;
      if (command.kind === "close") {
        this.#desk.close();
        continue;
      }
      this.start(command.kind, command.ticket, command);
    }
    return count;
  }

  /** Under the lock, behind all that the rank has asked for before. */
  start(
    kind: "send" | "receive",
    ticket: number,
    { peer, tag, byteOffset, byteLength }: Envelope,
  ): void {
    this.#desk.begin(kind, ticket, { address: this.#base + byteOffset, byteLength, peer, tag });
  }

  #settle({ owner, byteLength, error }: Completion): void {
    if (owner.kind === "beatSent") this.#desk.set(owner.peer, "beating", false);
    else if (owner.kind === "beatHeard") this.#heardBeat(owner.peer);
    else if (owner.kind === "receive") this.#received(owner, byteLength, error);
    else this.#finish(owner.ticket);
  }

  #received({ peer, byteLength: expected, ticket }: Owner, got: number, error: number): void {
    if (error === 0 && got === expected) {
      this.#finish(ticket);
      return;
    }
    const sent = error === 0 ? `${got} bytes` : `more bytes (MPI's error ${error})`;
    const message = `rank ${peer} sent ${sent} where rank ${this.#mpi.rank} expects ${expected}`;
    this.#signs.fail({ code: "parallel.mismatch", message });
  }

  #heardBeat(peer: number): void {
    const place = peer * BEAT_BYTES;
    const words = new DataView(this.#beats.buffer);
    const life = words.getInt32(place);
    if (life === CLOSED) {
      this.#desk.set(peer, "heardClosed", true);
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
    this.hearBeat(peer);
  }
}
