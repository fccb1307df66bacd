/**
 * @file Which of two ways of doing the same thing is faster here and now, by what each took.
 *
 * For work that comes again and again, such as a replayed list of launches, which a second thread
 * speeds up where there is enough in it and a core is free, and slows down otherwise. The other way
 * is tried now and then, because neighbours on the machine come and go.
 */
export type Way = "shared" | "alone";

/** What counts of each way: the second fastest of the last few runs, so that no outlier does. */
const SAMPLES = 7;
const TRY_EVERY = 64;

export class FasterWay {
  readonly #milliseconds: Record<Way, number[]> = { shared: [], alone: [] };
  #faster: Way = "shared";
  #numRuns = 0;

  /** The way for the next run; tell `note` what it took. */
  next(): Way {
    const { shared, alone } = this.#milliseconds;
    if (alone.length < SAMPLES) return alone.length < shared.length ? "alone" : "shared";
    const isTrial = ++this.#numRuns % TRY_EVERY === 0;
    if (!isTrial) return this.#faster;
    return this.#faster === "shared" ? "alone" : "shared";
  }

  note(way: Way, milliseconds: number): void {
    const samples = this.#milliseconds[way];
    samples.push(milliseconds);
    if (samples.length > SAMPLES) samples.shift();
    const { shared, alone } = this.#milliseconds;
    this.#faster = secondFastest(alone) < secondFastest(shared) ? "alone" : "shared";
  }
}

function secondFastest(milliseconds: readonly number[]): number {
  let [fastest, second] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (const each of milliseconds) {
    if (each < fastest) [fastest, second] = [each, fastest];
    else if (each < second) second = each;
  }
  return second;
}
