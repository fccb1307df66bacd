/**
 * @file Whether drafting pays, and how many drafts a step should have, by what was measured: it
 * decides how fast tokens come, never which.
 *
 *     with k drafts a step costs pass_k + k · draft and gives 1 + a₁ + a₁a₂ + … tokens
 *
 * a_j, the share of j-th drafts that stood where those before did, and the times are moving
 * averages over about the last 64 steps. A verified draft makes the pass itself longer, so passes
 * are measured by their number of drafts; one step in 64 has none, to know what it costs without.
 * One more draft than was tried is taken to cost the pass nothing, until it is tried. While no
 * draft pays, one new sequence in 16 drafts all the same, to notice a change.
 */

/** Repeated use makes guesses out of guesses: by feel, more than this never pays. */
export const DRAFTS_MAX = 4;
const WEIGHT = 1 / 64;
const PROBE_EVERY = 16;
/** Steps with drafts before one without. */
const PLAIN_EVERY = 64;
/** What is gained must be more than noise; by feel. */
const MARGIN = 1.05;

export class DraftPolicy {
  /** At first what DeepSeek-V3 reports. */
  readonly #acceptance: number[] = new Array(DRAFTS_MAX).fill(0.85);
  /** Milliseconds of a pass, by the number of drafts in it; NaN where none was seen. */
  readonly #passMs: number[] = new Array(DRAFTS_MAX + 1).fill(Number.NaN);
  #draftMs = 0;
  #numAsked = 0;
  #stepsSincePlain = 0;

  /** Whether a new sequence should draft. */
  admits(): boolean {
    this.#numAsked++;
    return this.pays || this.#numAsked % PROBE_EVERY === 0;
  }

  get pays(): boolean {
    const plainMs = this.#passMs[0]!;
    if (Number.isNaN(plainMs)) return true;
    return this.#rateOf(this.#best()) * plainMs > MARGIN;
  }

  /** How many drafts the next step should have: those that give most tokens in a time, or none. */
  get depth(): number {
    const isPlainDue = Number.isNaN(this.#passMs[0]!) || this.#stepsSincePlain >= PLAIN_EVERY;
    return isPlainDue ? 0 : this.#best();
  }

  /** Of `numDrafted` drafts of a sequence the first `numStood` stood. */
  noteDrafts(numDrafted: number, numStood: number): void {
    for (let index = 0; index < Math.min(numDrafted, numStood + 1); index++) {
      const stood = index < numStood ? 1 : 0;
      this.#acceptance[index]! += WEIGHT * (stood - this.#acceptance[index]!);
    }
  }

  /** A pass with up to `numDrafts` drafts a sequence, and making each of the next ones. */
  noteStep(numDrafts: number, passMs: number, draftMs: number): void {
    this.#stepsSincePlain = numDrafts === 0 ? 0 : this.#stepsSincePlain + 1;
    const known = this.#passMs[numDrafts]!;
    this.#passMs[numDrafts] = Number.isNaN(known) ? passMs : known + WEIGHT * (passMs - known);
    this.#draftMs += WEIGHT * (draftMs - this.#draftMs);
  }

  /** The number of drafts, at least one, with most tokens in a time. */
  #best(): number {
    let best = 1;
    for (let count = 2; count <= DRAFTS_MAX; count++) {
      if (this.#rateOf(count) > this.#rateOf(best)) best = count;
    }
    return best;
  }

  /** Tokens in a millisecond. */
  #rateOf(numDrafts: number): number {
    let [tokens, chance] = [1, 1];
    for (const acceptance of this.#acceptance.slice(0, numDrafts)) {
      chance *= acceptance;
      tokens += chance;
    }
    return tokens / (this.#passWith(numDrafts) + numDrafts * this.#draftMs);
  }

  /** What is known of the nearest smaller number of drafts. */
  #passWith(numDrafts: number): number {
    for (let count = numDrafts; count >= 0; count--) {
      if (!Number.isNaN(this.#passMs[count]!)) return this.#passMs[count]!;
    }
    return Number.NaN;
  }
}
