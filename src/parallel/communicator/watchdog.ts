/**
 * @file Notices ranks that show no sign of life, as seen by a rank that waits.
 *
 * Each rank has a counter that it raises while it polls, rests or ticks. A rank that waits reads
 * the counters of all; one that stood still for the whole limit, on the clock of the waiting rank
 * and while it waited, is given up. Nobody watches while nobody waits, so a rank that computes for
 * long is in danger only when others already need its results.
 */

/** A look after a longer time than this starts anew: the watcher itself was busy. */
const STALE_MS = 1000;

export class Watchdog {
  readonly #limitMs: number;
  readonly #seen: Int32Array;
  readonly #since: Float64Array;
  #lastLook = Number.NEGATIVE_INFINITY;

  constructor(numRanks: number, limitMs: number) {
    this.#limitMs = limitMs;
    this.#seen = new Int32Array(numRanks);
    this.#since = new Float64Array(numRanks);
  }

  /** The first rank that has stood still for too long, or null. */
  look(counterOf: (rank: number) => number, nowMs: number): number | null {
    const startsAnew = nowMs - this.#lastLook > STALE_MS;
    this.#lastLook = nowMs;
    let lost: number | null = null;
    for (let rank = 0; rank < this.#seen.length; rank++) {
      const counter = counterOf(rank);
      if (startsAnew || counter !== this.#seen[rank]) {
        this.#seen[rank] = counter;
        this.#since[rank] = nowMs;
      } else if (nowMs - this.#since[rank]! > this.#limitMs) lost ??= rank;
    }
    return lost;
  }

  /** What to tell of a rank that was given up. */
  describe(rank: number): string {
    return (
      `rank ${rank} has shown no sign of life for ${this.#limitMs / 1000} s while others waited ` +
      "for it; it hangs, or a step of its work takes longer than the watchdog allows"
    );
  }
}
