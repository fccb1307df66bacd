/**
 * @file Whether a pass over expert ranks goes as one micro-batch or as two, by the time that passes
 * took: it decides how fast a prompt is read, never which tokens come.
 *
 * Two hide how long tokens are with other ranks, and cost what products over half as many tokens
 * take longer. Which is less depends on the link, the model and the chunk, so both are tried in
 * turns, then the faster one is kept, and one pass in 32 goes the other way. Passes are compared by
 * the time of a unit of work, among those of about the same size.
 */

/** A pass through the layers. */
export interface TimedPass {
  readonly numTokens: number;
  readonly isTwo: boolean;
  /** In any unit: how long such a pass takes should be in proportion. */
  readonly work: number;
  readonly milliseconds: number;
}

export interface MicroBatchChoice {
  /** Whether a pass over so many tokens goes as two. */
  takesTwo(numTokens: number): boolean;
  note(pass: TimedPass): void;
}

/** Fewer tokens are a step of decoding, whose products are small enough. */
const TOKENS_MIN = 128;
/** Passes of each kind before one is preferred. */
const TRIALS = 3;
const RETRIAL = 32;
/** How far what is known moves towards what a pass took: a median, which outliers do not move. */
const MOVE = 1.1;

/** Of one way. */
interface Known {
  numPasses: number;
  /** Milliseconds of a unit of work. */
  rate: number;
}

/** Passes of one size. */
interface SizeClass {
  readonly one: Known;
  readonly two: Known;
  numSince: number;
}

export class MicroBatchPolicy implements MicroBatchChoice {
  readonly #classes = new Map<number, SizeClass>();

  takesTwo(numTokens: number): boolean {
    if (numTokens < TOKENS_MIN) return false;
    const { one, two, numSince } = this.#classOf(numTokens);
    if (one.numPasses < TRIALS || two.numPasses < TRIALS) return two.numPasses < one.numPasses;
    const isFaster = two.rate < one.rate;
    return numSince >= RETRIAL ? !isFaster : isFaster;
  }

  note({ numTokens, isTwo, work, milliseconds }: TimedPass): void {
    if (numTokens < TOKENS_MIN) return;
    const known = this.#classOf(numTokens);
    const { one, two } = known;
    const wasFaster = two.rate < one.rate;
    known.numSince = isTwo === wasFaster ? known.numSince + 1 : 0;
    const way = isTwo ? two : one;
    const rate = milliseconds / work;
    // The first passes generate kernels and touch memory: the least of the trials counts.
    if (way.numPasses < TRIALS) way.rate = Math.min(way.rate, rate);
    else way.rate = Math.min(Math.max(rate, way.rate / MOVE), way.rate * MOVE);
    way.numPasses++;
  }

  #classOf(numTokens: number): SizeClass {
    const size = Math.floor(Math.log2(numTokens));
    const known = this.#classes.get(size);
    if (known !== undefined) return known;
    const nothing = (): Known => ({ numPasses: 0, rate: Number.POSITIVE_INFINITY });
    const made = { one: nothing(), two: nothing(), numSince: 0 };
    this.#classes.set(size, made);
    return made;
  }
}
