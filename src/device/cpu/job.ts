/**
 * @file The job that threads share: one launch at a time, its tasks claimed in chunks.
 *
 * Each thread has a share of the tasks, as many after one another, and helps others when its own is
 * done. So a thread mostly gets the rows again that it had in the launch before, which are still in
 * its caches.
 *
 * The launching thread writes the job, opens it and works on it too; workers that are awake, or
 * wake in time, join. A worker announces itself (`ACTIVE`) before it looks whether the job is open,
 * and the launcher closes the job before it waits for `ACTIVE` to reach zero: so either the
 * launcher waits for the worker, or the worker sees a closed job. A worker that wakes late delays
 * nobody. Waiting spins for about 100 µs and then sleeps: idle workers burn nothing.
 */

import { MAX_SLOTS } from "../device.ts";
import type { KernelBody } from "../program.ts";
import type { BoundList } from "./launch-list.ts";
import { LOST_AFTER_MS, pause, SPINS } from "./spin.ts";

const SEQUENCE = 0;
const OPEN = 1;
const ACTIVE = 2;
const SLEEPERS = 3;
const NUM_TASKS = 5;
const GRAIN = 6;
const KEY = 7;
const STOP = 8;
const FAILED = 9;
const NUM_THREADS = 10;
const NUM_WORDS = 16;
/** The next task of each thread's share, on cache lines of their own. */
const LINE_WORDS = 16;
const FAILURE_BYTES = 1024;
const SLOTS_OFFSET = NUM_WORDS * 4;
const FAILURE_OFFSET = SLOTS_OFFSET + MAX_SLOTS * 8;
const SHARES_OFFSET = FAILURE_OFFSET + FAILURE_BYTES;

/** In place of a kernel's number: a launch list, whose place stands where tasks are counted. */
const LIST_KEY = -1;

/** The shared words of one device's job, seen from any thread. */
export class Job {
  readonly buffer: SharedArrayBuffer;
  readonly slots: Float64Array<SharedArrayBuffer>;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #nextTasks: Int32Array<SharedArrayBuffer>;
  readonly #numThreads: number;

  private constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer, 0, NUM_WORDS);
    this.slots = new Float64Array(buffer, SLOTS_OFFSET, MAX_SLOTS);
    this.#nextTasks = new Int32Array(buffer, SHARES_OFFSET);
    this.#numThreads = this.#words[NUM_THREADS]!;
  }

  /** The launcher's view of a new job. */
  static create(numThreads: number): Job {
    const buffer = new SharedArrayBuffer(SHARES_OFFSET + 4 * LINE_WORDS * numThreads);
    new Int32Array(buffer, 0, NUM_WORDS)[NUM_THREADS] = numThreads;
    return new Job(buffer);
  }

  /** A worker's view of it. */
  static attach(buffer: SharedArrayBuffer): Job {
    return new Job(buffer);
  }

  /** The first task of a thread's share; that of the next thread ends it. */
  #firstOf(threadIndex: number, numTasks: number): number {
    return Math.floor((threadIndex * numTasks) / this.#numThreads);
  }

  /** Launcher: publish a job whose slots are already written. */
  open(keyIndex: number, numTasks: number, grain: number): void {
    const words = this.#words;
    words[KEY] = keyIndex;
    words[NUM_TASKS] = numTasks;
    words[GRAIN] = grain;
    for (let thread = 0; thread < this.#numThreads; thread++) {
      const first = this.#firstOf(thread, numTasks);
      Atomics.store(this.#nextTasks, LINE_WORDS * thread, first);
    }
    Atomics.store(words, OPEN, 1);
    Atomics.add(words, SEQUENCE, 1);
    if (Atomics.load(words, SLEEPERS) > 0) Atomics.notify(words, SEQUENCE);
  }

  /** Launcher: publish a launch list that is ready to be replayed. */
  openList(byteOffset: number): void {
    this.open(LIST_KEY, byteOffset, 0);
  }

  /**
   * Any thread that has joined: claim and run tasks until none is left, its own share first, then
   * those of the threads behind it.
   */
  work(body: KernelBody, threadIndex: number): void {
    const words = this.#words;
    const numTasks = words[NUM_TASKS]!;
    const grain = words[GRAIN]!;
    for (let step = 0; step < this.#numThreads; step++) {
      const share = (threadIndex + step) % this.#numThreads;
      const end = this.#firstOf(share + 1, numTasks);
      for (;;) {
        const first = Atomics.add(this.#nextTasks, LINE_WORDS * share, grain);
        if (first >= end) break;
        body(this.slots, first, Math.min(first + grain, end));
      }
    }
  }

  /**
   * Launcher: let nobody else join, and wait for those who did. Returns a worker's failure, if
   * there was one.
   */
  close(): string | null {
    const words = this.#words;
    Atomics.store(words, OPEN, 0);
    let spins = SPINS;
    for (let active = Atomics.load(words, ACTIVE); active !== 0; ) {
      if (spins-- > 0) pause();
      else if (Atomics.wait(words, ACTIVE, active, LOST_AFTER_MS) === "timed-out") {
        return `no answer from ${active} threads in ${LOST_AFTER_MS / 60_000} minutes`;
      }
      active = Atomics.load(words, ACTIVE);
    }
    if (Atomics.load(words, FAILED) === 0) return null;
    const bytes = new Uint8Array(this.buffer, FAILURE_OFFSET, FAILURE_BYTES).slice();
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
  }

  /** Worker: sleep until there is a job or the end; runs every job it can join. */
  serve(
    threadIndex: number,
    bodyOf: (keyIndex: number) => KernelBody,
    listAt: (byteOffset: number) => Pick<BoundList, "follow" | "abort">,
  ): void {
    const words = this.#words;
    let seen = 0;
    for (;;) {
      seen = this.#awaitSequence(seen);
      if (Atomics.load(words, STOP) !== 0) return;
      Atomics.add(words, ACTIVE, 1);
      try {
        if (Atomics.load(words, OPEN) === 0) continue;
        if (words[KEY] === LIST_KEY) this.#follow(listAt(words[NUM_TASKS]!));
        else this.work(bodyOf(words[KEY]!), threadIndex);
      } catch (error) {
        this.#fail(error);
      } finally {
        if (Atomics.sub(words, ACTIVE, 1) === 1) Atomics.notify(words, ACTIVE);
      }
    }
  }

  #follow(list: Pick<BoundList, "follow" | "abort">): void {
    try {
      list.follow();
    } catch (error) {
      this.#fail(error);
      list.abort();
    }
  }

  /** Launcher: end every worker's `serve`. */
  stop(): void {
    Atomics.store(this.#words, STOP, 1);
    Atomics.add(this.#words, SEQUENCE, 1);
    Atomics.notify(this.#words, SEQUENCE);
  }

  #awaitSequence(seen: number): number {
    const words = this.#words;
    for (let spins = SPINS; spins > 0; spins--) {
      const sequence = Atomics.load(words, SEQUENCE);
      if (sequence !== seen) return sequence;
      pause();
    }
    Atomics.add(words, SLEEPERS, 1);
    Atomics.wait(words, SEQUENCE, seen);
    Atomics.sub(words, SLEEPERS, 1);
    return Atomics.load(words, SEQUENCE);
  }

  #fail(error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    const bytes = new TextEncoder().encode(text).subarray(0, FAILURE_BYTES - 1);
    new Uint8Array(this.buffer, FAILURE_OFFSET, FAILURE_BYTES).fill(0).set(bytes);
    Atomics.store(this.#words, FAILED, 1);
  }
}
