/**
 * @file What load to expect of each expert, from what was counted before.
 *
 * Placement is decided for the future from the past: a moving average forgets smoothly, a window
 * forgets all at once what is older than its last counts. Both start with the first count.
 */
import { assert } from "../../../base/errors.ts";

export type HistoryKind =
  | { readonly kind: "movingAverage" /** Share of the old estimate that stays. */; decay: number }
  | { readonly kind: "window" /** Counts that are summed. */; numCounts: number };

/** Of one layer. */
export class ExpertLoadHistory {
  readonly numExperts: number;
  readonly #kind: HistoryKind;
  readonly #recent: Float64Array[] = [];
  #average: Float64Array | null = null;

  constructor(numExperts: number, kind: HistoryKind) {
    if (kind.kind === "movingAverage") {
      assert(kind.decay >= 0 && kind.decay < 1, `decay (${kind.decay}) must lie in [0, 1)`);
    } else assert(kind.numCounts >= 1, `numCounts (${kind.numCounts}) must be at least 1`);
    this.numExperts = numExperts;
    this.#kind = kind;
  }

  /** The tokens that each expert got since the last record. */
  record(expertLoad: ArrayLike<number>): void {
    const { numExperts } = this;
    assert(expertLoad.length === numExperts, `${expertLoad.length} loads of ${numExperts} experts`);
    const load = Float64Array.from(expertLoad);
    if (this.#kind.kind === "window") {
      this.#recent.push(load);
      if (this.#recent.length > this.#kind.numCounts) this.#recent.shift();
      return;
    }
    const { decay } = this.#kind;
    this.#average =
      this.#average?.map((value, expert) => decay * value + (1 - decay) * load[expert]!) ?? load;
  }

  /** What is remembered, the oldest first: the counts of a window, or the one average. */
  get remembered(): readonly Float64Array[] {
    return this.#kind.kind === "window" ? this.#recent : this.#average ? [this.#average] : [];
  }

  /** Go on from what another history of this kind remembers. */
  recall(remembered: readonly ArrayLike<number>[]): void {
    this.#recent.length = 0;
    this.#average = null;
    for (const load of remembered) this.record(load);
  }

  /** The expected load, in the unit of one record; zeros before the first. */
  estimate(): Float64Array {
    if (this.#average !== null) return this.#average.slice();
    const sum = new Float64Array(this.numExperts);
    for (const load of this.#recent) {
      for (let expert = 0; expert < sum.length; expert++) sum[expert]! += load[expert]!;
    }
    return sum.map((value) => value / Math.max(1, this.#recent.length));
  }
}
