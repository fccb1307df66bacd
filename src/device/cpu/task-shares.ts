/**
 * @file How threads share the tasks of a launch.
 *
 *     i32 ×16 a thread    the next task of its share
 *
 * Each thread has consecutive tasks of its own, the same in every launch of as many tasks: what one
 * launch has left in its caches the next one finds there. A thread that is done with its share
 * takes from those of the threads behind it, so that one that is late holds nobody up.
 */

/** Counters of two threads are never on one cache line. */
const LINE_WORDS = 16;

/** Words that the shares of so many threads take. */
export function shareWords(numThreads: number): number {
  return LINE_WORDS * numThreads;
}

/** Tasks of a launch, and where the counters of its shares begin. */
export interface SharedTasks {
  readonly at: number;
  readonly numTasks: number;
  /** Tasks that a thread claims at once. */
  readonly grain: number;
}

/** The shares of one device's threads, as one of them sees them. */
export class TaskShares {
  readonly #words: Int32Array;
  readonly #numThreads: number;
  readonly #threadIndex: number;

  constructor(words: Int32Array, numThreads: number, threadIndex: number) {
    this.#words = words;
    this.#numThreads = numThreads;
    this.#threadIndex = threadIndex;
  }

  /** Launcher: none of the tasks is taken. */
  deal({ at, numTasks }: Omit<SharedTasks, "grain">): void {
    for (let thread = 0; thread < this.#numThreads; thread++) {
      Atomics.store(this.#words, at + LINE_WORDS * thread, this.#firstOf(thread, numTasks));
    }
  }

  /** Claim and run tasks until none is left; returns how many this thread ran. */
  run({ at, numTasks, grain }: SharedTasks, body: (first: number, end: number) => void): number {
    let count = 0;
    for (let step = 0; step < this.#numThreads; step++) {
      const share = (this.#threadIndex + step) % this.#numThreads;
      const end = this.#firstOf(share + 1, numTasks);
      for (;;) {
        const first = Atomics.add(this.#words, at + LINE_WORDS * share, grain);
        if (first >= end) break;
        const last = Math.min(first + grain, end);
        body(first, last);
        count += last - first;
      }
    }
    return count;
  }

  /** The first task of a thread's share; that of the next thread ends it. */
  #firstOf(thread: number, numTasks: number): number {
    return Math.floor((thread * numTasks) / this.#numThreads);
  }
}
