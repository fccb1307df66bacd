/**
 * @file The job that threads share: one launch at a time, its tasks claimed in chunks
 * (task-shares.ts).
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
import { shareWords, TaskShares } from "./task-shares.ts";

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
  readonly #shares: TaskShares;

  private constructor(buffer: SharedArrayBuffer, threadIndex: number) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer, 0, NUM_WORDS);
    this.slots = new Float64Array(buffer, SLOTS_OFFSET, MAX_SLOTS);
    const numThreads = this.#words[NUM_THREADS]!;
    this.#shares = new TaskShares(new Int32Array(buffer, SHARES_OFFSET), numThreads, threadIndex);
  }

  /** The launcher's view of a new job. */
  static create(numThreads: number): Job {
    const buffer = new SharedArrayBuffer(SHARES_OFFSET + 4 * shareWords(numThreads));
    new Int32Array(buffer, 0, NUM_WORDS)[NUM_THREADS] = numThreads;
    return new Job(buffer, 0);
  }

  /** A worker's view of it. */
  static attach(buffer: SharedArrayBuffer, threadIndex: number): Job {
    return new Job(buffer, threadIndex);
  }

  /** Launcher: publish a job whose slots are already written. */
  open(keyIndex: number, numTasks: number, grain: number): void {
    const words = this.#words;
    words[KEY] = keyIndex;
    words[NUM_TASKS] = numTasks;
    words[GRAIN] = grain;
    this.#shares.deal({ at: 0, numTasks });
    Atomics.store(words, OPEN, 1);
    Atomics.add(words, SEQUENCE, 1);
    if (Atomics.load(words, SLEEPERS) > 0) Atomics.notify(words, SEQUENCE);
  }

  /** Launcher: publish a launch list that is ready to be replayed. */
  openList(byteOffset: number): void {
    this.open(LIST_KEY, byteOffset, 0);
  }

  /** Any thread that has joined: claim and run tasks until none is left. */
  work(body: KernelBody): void {
    const tasks = { at: 0, numTasks: this.#words[NUM_TASKS]!, grain: this.#words[GRAIN]! };
    this.#shares.run(tasks, (first, end) => body(this.slots, first, end));
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
        else this.work(bodyOf(words[KEY]!));
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
