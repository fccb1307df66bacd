/**
 * @file Notices ranks that are lost, as seen by a rank that waits.
 *
 * Two things are judged. A process lives while beats come from it; they are sent by a thread of
 * their own and stop when it is killed, stopped or cut off. Its program goes on while it shows
 * signs of life: it polls, rests, ticks. One of them that stands still for the whole limit, on the
 * clock of the waiting rank and while it waited, is the end of that rank. Time in which the
 * system kept the program from running is not counted, up to a limit: it says nothing about the
 * program. Nobody watches while nobody waits, so a rank that computes for long is in danger only
 * when others already need its results.
 *
 * Not told apart: a program in an endless loop, and one whose step of work takes longer than the
 * limit without a sign.
 */
import type { Judged } from "./communicator.ts";

/** A look after a longer time than this starts anew: the watcher itself was busy. */
const STALE_MS = 1000;
/** From so long a standstill on it is asked what held the program up. */
const STILL_MS = 1000;
/** So much is forgiven at most: a system that never lets a program run is as bad as a hang. */
const HELD_UP_MS_MAX = 60_000;

/** What a rank knows of the others: counters, and milliseconds since some beginning. */
export interface Vitals {
  beats(rank: number): number;
  signs(rank: number): number;
  /** For how long its program was kept from running; asked when it stands still. */
  heldUpMs(rank: number): number;
}

/** A counter, and since when it has stood still. */
interface Seen {
  value: number;
  sinceMs: number;
}

interface Observed {
  readonly beats: Seen;
  readonly signs: Seen;
  /** How long the program had been held up when that was first asked in this standstill. */
  heldUpBefore: number | null;
}

export class Watchdog {
  readonly #limitMs: number;
  readonly #ranks: readonly Observed[];
  #lastLook = Number.NEGATIVE_INFINITY;

  constructor(numRanks: number, limitMs: number) {
    this.#limitMs = limitMs;
    this.#ranks = Array.from({ length: numRanks }, () => ({
      beats: { value: 0, sinceMs: 0 },
      signs: { value: 0, sinceMs: 0 },
      heldUpBefore: null,
    }));
  }

  /** What is wrong with the first rank that is lost, or null. */
  look(vitals: Vitals, judged: Judged, nowMs: number): string | null {
    const startsAnew = nowMs - this.#lastLook > STALE_MS;
    this.#lastLook = nowMs;
    let problem: string | null = null;
    for (const [rank, observed] of this.#ranks.entries()) {
      const { beats, signs } = observed;
      const silentMs = stillMs(beats, vitals.beats(rank), nowMs, startsAnew);
      const idleMs = stillMs(signs, vitals.signs(rank), nowMs, startsAnew || judged !== "ranks");
      if (idleMs <= STILL_MS) observed.heldUpBefore = null;
      if (silentMs > this.#limitMs) problem ??= this.#ofProcess(rank);
      else if (idleMs > Math.min(STILL_MS, this.#limitMs)) {
        const heldUp = vitals.heldUpMs(rank);
        observed.heldUpBefore ??= heldUp;
        const forgivenMs = Math.min(heldUp - observed.heldUpBefore, HELD_UP_MS_MAX);
        if (idleMs - forgivenMs > this.#limitMs) problem ??= this.#ofProgram(rank);
      }
    }
    return problem;
  }

  #ofProcess(rank: number): string {
    return (
      `nothing was heard of rank ${rank} for ${this.#limitMs / 1000} s; its process was killed ` +
      "or stopped, or the network between is down"
    );
  }

  #ofProgram(rank: number): string {
    return (
      `rank ${rank} has shown no sign of life for ${this.#limitMs / 1000} s while others waited ` +
      "for it; its process lives, but it hangs, or a step of its work takes longer than the " +
      "watchdog allows"
    );
  }
}

/** For how long a counter has stood still. */
function stillMs(seen: Seen, value: number, nowMs: number, startsAnew: boolean): number {
  if (startsAnew || value !== seen.value) {
    seen.value = value;
    seen.sinceMs = nowMs;
  }
  return nowMs - seen.sinceMs;
}
