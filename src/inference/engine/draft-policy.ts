/**
 * @file Whether drafting pays, by what was measured: it decides how fast tokens come, never which.
 *
 *     with drafts a step costs pass + draft and gives 1 + a tokens; it pays while a > draft / pass
 *
 * a, the share of drafts that stood, and both times are moving averages over about the last 64
 * steps. While it does not pay, one new sequence in 16 drafts all the same, to notice a change.
 */

const WEIGHT = 1 / 64;
const PROBE_EVERY = 16;
/** A verified draft makes the pass itself longer; by feel. */
const MARGIN = 1.25;

export class DraftPolicy {
  /** At first what DeepSeek-V3 reports. */
  #acceptance = 0.85;
  #passMs = 1;
  #draftMs = 0;
  #numAsked = 0;

  /** Whether a new sequence should draft. */
  admits(): boolean {
    this.#numAsked++;
    return this.pays || this.#numAsked % PROBE_EVERY === 0;
  }

  get pays(): boolean {
    return this.#acceptance * this.#passMs > MARGIN * this.#draftMs;
  }

  noteDraft(stood: boolean): void {
    this.#acceptance += WEIGHT * ((stood ? 1 : 0) - this.#acceptance);
  }

  noteStep(passMs: number, draftMs: number): void {
    this.#passMs += WEIGHT * (passMs - this.#passMs);
    this.#draftMs += WEIGHT * (draftMs - this.#draftMs);
  }
}
