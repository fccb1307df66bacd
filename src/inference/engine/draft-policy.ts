/**
 * @file Whether drafting pays, and how many drafts a step should have, by what was measured: it
 * decides how fast tokens come, never which.
 *
 *     with k drafts a step gives 1 + a₁ + a₁a₂ + … tokens and takes c_k times what it takes without
 *
 * a_j is the share of j-th drafts that stood where those before did, over about the last 256. c_k
 * compares medians of steps with k drafts, making the next ones included, and of a few steps
 * without that came just before: so neither a neighbour on the machine nor the first passes of a
 * shape count for much. The more streams share a step, the more a draft costs it: c_k is kept apart
 * for 1, 2, 3 to 4, 5 to 8 … streams. One draft more than was tried is taken to cost as much as the
 * one before, and to stand as often. Drafts are given up when they lose even if a_j is a standard
 * deviation more than it seems, and, while code is being compiled, if c_k will fall yet; then one
 * new sequence in 16 drafts all the same, to notice a change.
 */
import { median } from "../../base/median.ts";

/** Repeated use makes guesses out of guesses: by feel, more than this never pays. */
export const DRAFTS_MAX = 4;
/** What DeepSeek-V3 reports of the first draft; weighs as much as one that was tried. */
const ACCEPTANCE_FIRST = 0.85;
const ACCEPTANCE_TRIES = 256;
const PROBE_EVERY = 16;
/** Steps without drafts, more of them at first, and then with, that are compared. */
const PLAIN_STEPS_FIRST = 7;
const PLAIN_STEPS = 3;
const DRAFTED_STEPS = 48;
/** Comparisons that count. */
const COMPARISONS = 4;
/** What a draft adds to a step before any was compared; by feel, the least it can. */
const COST_LEAST = 0.1;

/** As it was measured, or as well as it may turn out. */
type View = "seen" | "hoped";

/** What a step of the engine that read no prompt took. */
export interface DraftedStep {
  readonly numStreams: number;
  /** Drafts of each stream that it verified. */
  readonly numDrafts: number;
  /** Drafts that it made for each stream; null if not the same for all. */
  readonly numNext: number | null;
  /** Verifying and choosing tokens, and making drafts. */
  readonly passMs: number;
  readonly draftMs: number;
}

export class DraftPolicy {
  readonly #acceptance: Acceptance[] = [];
  /** By the logarithm of the number of streams. */
  readonly #costs: StepCosts[] = [];
  #numAsked = 0;

  /** Whether a new sequence beside which so many run should draft. */
  admits(numStreams: number): boolean {
    this.#numAsked++;
    return !this.loses(numStreams) || this.#numAsked % PROBE_EVERY === 0;
  }

  /** Whether sequences are better off without drafts. */
  loses(numStreams: number): boolean {
    return this.#gainOf(numStreams, this.#best(numStreams), "hoped") < 1;
  }

  /**
   * How many drafts a stream the next step should have: those that give most in a time, or none.
   */
  depth(numStreams: number): number {
    return this.#costsOf(numStreams).isPlainDue ? 0 : this.#best(numStreams);
  }

  /** Of `numDrafted` drafts of a sequence the first `numStood` stood. */
  noteDrafts(numDrafted: number, numStood: number): void {
    for (let index = 0; index < Math.min(numDrafted, numStood + 1); index++) {
      const acceptance = this.#acceptance[index] ?? new Acceptance(this.#acceptanceOf(index));
      this.#acceptance[index] = acceptance;
      acceptance.note(index < numStood);
    }
  }

  noteStep({ numStreams, numDrafts, numNext, passMs, draftMs }: DraftedStep): void {
    const costs = this.#costsOf(numStreams);
    if (numDrafts === 0) costs.notePlain(passMs);
    else if (numDrafts === numNext) costs.noteDrafted(numDrafts, passMs + draftMs);
  }

  /** The number of drafts, at least one, with most tokens in a time. */
  #best(numStreams: number): number {
    let best = 1;
    if (!this.#knownCosts(numStreams).isKnown) return best;
    for (let count = 2; count <= DRAFTS_MAX; count++) {
      if (this.#gainOf(numStreams, count) > this.#gainOf(numStreams, best)) best = count;
    }
    return best;
  }

  /** Tokens in a time, where there is one without drafts. */
  #gainOf(numStreams: number, numDrafts: number, how: View = "seen"): number {
    let [tokens, chance] = [1, 1];
    for (let index = 0; index < numDrafts; index++) {
      chance *= this.#acceptanceOf(index, how);
      tokens += chance;
    }
    return tokens / this.#knownCosts(numStreams).of(numDrafts, how);
  }

  #acceptanceOf(index: number, how: View = "seen"): number {
    if (index < 0) return ACCEPTANCE_FIRST;
    return this.#acceptance[index]?.[how] ?? this.#acceptanceOf(index - 1, how);
  }

  /** Where none runs, as where a preempted one is read again, of the one that will. */
  #costsOf(numStreams: number): StepCosts {
    const index = Math.ceil(Math.log2(Math.max(1, numStreams)));
    for (let next = this.#costs.length; next <= index; next++) this.#costs.push(new StepCosts());
    return this.#costs[index]!;
  }

  /** Of so many streams, or of the next fewer that drafted. */
  #knownCosts(numStreams: number): StepCosts {
    const own = this.#costsOf(numStreams);
    const index = this.#costs.indexOf(own);
    return this.#costs.slice(0, index + 1).findLast(({ isKnown }) => isKnown) ?? own;
  }
}

/** The share of drafts that stood. */
class Acceptance {
  #share: number;
  #numTried = 1;

  constructor(expected: number) {
    this.#share = expected;
  }

  get seen(): number {
    return this.#share;
  }

  /** A standard deviation more: the fewer were tried, the less is known. */
  get hoped(): number {
    const spread = this.#share * (1 - this.#share) + 1 / this.#numTried;
    return Math.min(1, this.#share + Math.sqrt(spread / this.#numTried));
  }

  note(stood: boolean): void {
    this.#numTried = Math.min(this.#numTried + 1, ACCEPTANCE_TRIES);
    this.#share += ((stood ? 1 : 0) - this.#share) / this.#numTried;
  }
}

/** What steps with drafts take, in steps without. */
class StepCosts {
  /** By the number of drafts. */
  readonly #ratios: (number | undefined)[] = [];
  readonly #numCompared: number[] = new Array(DRAFTS_MAX + 1).fill(0);
  #plainMs: number[] = [];
  #draftedMs: number[] = [];
  #numDrafts = 0;

  /** Whether any step with drafts was compared. */
  get isKnown(): boolean {
    return this.#ratios.length > 0;
  }

  get isPlainDue(): boolean {
    return this.#plainMs.length < (this.isKnown ? PLAIN_STEPS : PLAIN_STEPS_FIRST);
  }

  of(numDrafts: number, how: View): number {
    if (numDrafts <= 0) return 1;
    if (!this.isKnown) return 1 + COST_LEAST * numDrafts;
    const ratio = this.#ratios[numDrafts];
    const before = this.of(numDrafts - 1, how);
    if (ratio === undefined) return before + (before - this.of(numDrafts - 2, how));
    const numCompared = this.#numCompared[numDrafts]!;
    const isSure = how === "seen" || numCompared === COMPARISONS;
    return isSure ? ratio : 1 + (ratio - 1) * (1 - 0.5 / numCompared);
  }

  notePlain(milliseconds: number): void {
    this.#plainMs.push(milliseconds);
    if (this.#plainMs.length > PLAIN_STEPS_FIRST) this.#plainMs.shift();
  }

  noteDrafted(numDrafts: number, milliseconds: number): void {
    if (numDrafts !== this.#numDrafts) this.#draftedMs = [];
    this.#numDrafts = numDrafts;
    this.#draftedMs.push(milliseconds);
    if (this.#draftedMs.length < DRAFTED_STEPS || this.isPlainDue) return;
    const ratio = median(this.#draftedMs) / median(this.#plainMs);
    const known = this.#ratios[numDrafts] ?? ratio;
    const numCompared = Math.min(this.#numCompared[numDrafts]! + 1, COMPARISONS);
    this.#numCompared[numDrafts] = numCompared;
    this.#ratios[numDrafts] = known + (ratio - known) / numCompared;
    this.#plainMs = [];
    this.#draftedMs = [];
  }
}
