/**
 * @file How a rank tells its communication thread what to send, and hears what is done.
 *
 *   commands   a ring of words: what to do, with whom, which bytes, under which ticket
 *   finished   a ring of tickets
 *   vitals     what is known of all ranks: beats heard, signs of life, milliseconds held up
 *
 * The rank writes commands and reads what is finished; whoever holds the desk's lock (desk.ts) does
 * the opposite. There are fewer tickets than places in a ring, so neither ring can overflow. Places
 * are counted, from the first again after the last: of messages there are more than 2³¹ in days.
 */
export const TICKETS = 1024;

export const COMMANDS = ["send", "receive", "close"] as const;
export type CommandKind = (typeof COMMANDS)[number];

export interface Command {
  readonly kind: CommandKind;
  readonly ticket: number;
  readonly peer: number;
  readonly tag: number;
  readonly byteOffset: number;
  readonly byteLength: number;
}

const COMMAND_WORDS = 6;
const PLACES = TICKETS + 1;
/** The places that come next: of commands posted, of tickets finished, of commands taken. */
const NEXT_COMMAND = 0;
const NEXT_FINISHED = 1;
const NEXT_TAKEN = 2;
const HEADER_WORDS = 16;
const FINISHED_OFFSET = HEADER_WORDS + PLACES * COMMAND_WORDS;
const VITALS_OFFSET = FINISHED_OFFSET + PLACES;
const VITALS_WORDS = 3;

export class Mailbox {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #unsigned: Uint32Array;
  /** The place of what is finished that the rank reads next. */
  #nextRead = 0;

  constructor(numRanks: number, buffer?: SharedArrayBuffer) {
    this.buffer = buffer ?? new SharedArrayBuffer((VITALS_OFFSET + VITALS_WORDS * numRanks) * 4);
    this.#words = new Int32Array(this.buffer);
    this.#unsigned = new Uint32Array(this.buffer);
  }

  /** Rank's side. */
  post({ kind, ticket, peer, tag, byteOffset, byteLength }: Command): void {
    const place = Atomics.load(this.#words, NEXT_COMMAND);
    const word = HEADER_WORDS + place * COMMAND_WORDS;
    this.#words[word] = COMMANDS.indexOf(kind);
    this.#words[word + 1] = ticket;
    this.#words[word + 2] = peer;
    this.#words[word + 3] = tag;
    this.#unsigned[word + 4] = byteOffset;
    this.#unsigned[word + 5] = byteLength;
    Atomics.store(this.#words, NEXT_COMMAND, (place + 1) % PLACES);
  }

  /** Under the lock: the next command, if there is one. */
  take(): Command | null {
    const place = Atomics.load(this.#words, NEXT_TAKEN);
    if (place === Atomics.load(this.#words, NEXT_COMMAND)) return null;
    const word = HEADER_WORDS + place * COMMAND_WORDS;
    Atomics.store(this.#words, NEXT_TAKEN, (place + 1) % PLACES);
    return {
      kind: COMMANDS[this.#words[word]!]!,
      ticket: this.#words[word + 1]!,
      peer: this.#words[word + 2]!,
      tag: this.#words[word + 3]!,
      byteOffset: this.#unsigned[word + 4]!,
      byteLength: this.#unsigned[word + 5]!,
    };
  }

  /** Under the lock. */
  finish(ticket: number): void {
    const place = Atomics.load(this.#words, NEXT_FINISHED);
    this.#words[FINISHED_OFFSET + place] = ticket;
    Atomics.store(this.#words, NEXT_FINISHED, (place + 1) % PLACES);
  }

  /** Rank's side: the next finished ticket, if there is one. */
  takeFinished(): number | null {
    if (this.#nextRead === Atomics.load(this.#words, NEXT_FINISHED)) return null;
    const ticket = this.#words[FINISHED_OFFSET + this.#nextRead]!;
    this.#nextRead = (this.#nextRead + 1) % PLACES;
    return ticket;
  }

  beats(rank: number): number {
    return this.#vital(rank, 0);
  }

  life(rank: number): number {
    return this.#vital(rank, 1);
  }

  heldUpMs(rank: number): number {
    return this.#vital(rank, 2);
  }

  /** Under the lock: a beat was heard, and this was in it. */
  heard(rank: number, beat: { readonly life: number; readonly heldUpMs: number }): void {
    const word = VITALS_OFFSET + VITALS_WORDS * rank;
    Atomics.store(this.#words, word + 1, beat.life);
    Atomics.store(this.#words, word + 2, beat.heldUpMs);
    Atomics.add(this.#words, word, 1);
  }

  #vital(rank: number, word: number): number {
    return Atomics.load(this.#words, VITALS_OFFSET + VITALS_WORDS * rank + word);
  }
}
