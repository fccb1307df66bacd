/**
 * @file A launch list in the CPU's memory, and how threads run it together.
 *
 *     header  i32 ×16    id, stages, launches, threads, progress, sleepers
 *     stages  i32 ×16    tasks done; tasks, launches, whether it is the launcher's alone
 *             i32 ×16    the next task of each thread's share (task-shares.ts)
 *     launch  i32 ×8     key, tasks, tasks claimed at once, first slot, slots
 *     slots   f64        of all launches
 *
 * A stage is a launch that threads share, launches recorded together, or a run of launches of one
 * task each, which the launching thread does alone without telling anybody. Stages follow each
 * other: `progress` counts those that are done, and whoever does a stage's last task moves it on.
 * Threads only ever wait for tasks that another has begun, so one that is late, or not there at
 * all, holds nobody up. A thread builds its own view of a list, with its bodies, when it first
 * meets its id.
 */
import { assert, defined } from "../../base/errors.ts";
import type { KernelBody, Program } from "../program.ts";
import type { CpuMemory } from "./memory.ts";
import { LOST_AFTER_MS, pause, SPINS } from "./spin.ts";
import { type SharedTasks, shareWords, TaskShares } from "./task-shares.ts";

/** One launch as it was recorded. */
export interface RecordedLaunch {
  readonly keyIndex: number;
  readonly slots: readonly number[];
  readonly numTasks: number;
  /** Tasks that a thread claims at once. */
  readonly grain: number;
  /** Launches next to each other with the same number were recorded together. */
  readonly togetherId: number;
}

const LINE_WORDS = 16;
const HEADER_AT = { id: 0, stages: 1, launches: 2, threads: 3, progress: 4, sleepers: 5 } as const;
const STAGE_AT = { done: 0, tasks: 1, launches: 2, isLaunchers: 3 } as const;
const LAUNCH_WORDS = 8;
const LAUNCH_AT = { key: 0, tasks: 1, grain: 2, firstSlot: 3, slots: 4 } as const;
/** Progress of a list that a failure ended. */
const ABORTED = 2 ** 30;
/** By feel: a tick costs nothing beside so many, and so many are far from taking a minute. */
const STAGES_PER_TICK = 32;

/** Launches that run at once, or by the launcher one after another. */
interface Stage {
  readonly launches: readonly RecordedLaunch[];
  readonly isLaunchers: boolean;
}

/** Cuts a recording into stages. */
function stagesOf(launches: readonly RecordedLaunch[]): Stage[] {
  const stages: { launches: RecordedLaunch[]; isLaunchers: boolean; togetherId: number }[] = [];
  for (const launch of launches) {
    const { togetherId, numTasks } = launch;
    const last = stages.at(-1);
    const isLaunchers = togetherId === 0 && numTasks === 1;
    const joins = last?.isLaunchers === isLaunchers && last.togetherId === togetherId;
    if (joins && (isLaunchers || togetherId !== 0)) last.launches.push(launch);
    else stages.push({ launches: [launch], isLaunchers, togetherId });
  }
  return stages;
}

/** Words of a stage. */
function stageWords(numThreads: number): number {
  return LINE_WORDS + shareWords(numThreads);
}

/** Bytes that a recording takes. */
export function listBytes(launches: readonly RecordedLaunch[], numThreads: number): number {
  const numSlots = launches.reduce((sum, { slots }) => sum + slots.length, 0);
  const counters = LINE_WORDS + stagesOf(launches).length * stageWords(numThreads);
  return 4 * (counters + LAUNCH_WORDS * launches.length) + 8 * numSlots;
}

/** Write a recording at a byte offset that lies on a cache line. */
export function writeList(
  memory: CpuMemory,
  byteOffset: number,
  list: {
    readonly id: number;
    readonly launches: readonly RecordedLaunch[];
    readonly numThreads: number;
  },
): void {
  const { id, launches, numThreads } = list;
  const stages = stagesOf(launches);
  const words = memory.i32;
  const header = byteOffset / 4;
  const firstStage = header + LINE_WORDS;
  const firstLaunch = firstStage + stages.length * stageWords(numThreads);
  words.fill(0, header, firstLaunch);
  words[header + HEADER_AT.id] = id;
  words[header + HEADER_AT.stages] = stages.length;
  words[header + HEADER_AT.launches] = launches.length;
  words[header + HEADER_AT.threads] = numThreads;
  stages.forEach((stage, index) => {
    const at = firstStage + index * stageWords(numThreads);
    words[at + STAGE_AT.tasks] = stage.launches.reduce((sum, { numTasks }) => sum + numTasks, 0);
    words[at + STAGE_AT.launches] = stage.launches.length;
    words[at + STAGE_AT.isLaunchers] = stage.isLaunchers ? 1 : 0;
  });
  let at = firstLaunch;
  let slot = (at + LAUNCH_WORDS * launches.length) / 2;
  for (const { keyIndex, numTasks, grain, slots } of launches) {
    words[at + LAUNCH_AT.key] = keyIndex;
    words[at + LAUNCH_AT.tasks] = numTasks;
    words[at + LAUNCH_AT.grain] = grain;
    words[at + LAUNCH_AT.firstSlot] = slot;
    words[at + LAUNCH_AT.slots] = slots.length;
    memory.f64.set(slots, slot);
    at += LAUNCH_WORDS;
    slot += slots.length;
  }
}

interface BoundLaunch {
  readonly body: KernelBody;
  readonly slots: Float64Array;
  readonly numTasks: number;
  readonly grain: number;
}

interface BoundStage {
  /** Of the tasks that are done. */
  readonly doneAt: number;
  readonly tasks: SharedTasks;
  readonly isLaunchers: boolean;
  readonly launches: readonly BoundLaunch[];
}

/** A list as one thread runs it. */
export class BoundList {
  readonly id: number;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #progressAt: number;
  readonly #sleepersAt: number;
  readonly #shares: TaskShares;
  readonly #stages: readonly BoundStage[];

  /** Views made once stay good: memory grows in place. */
  constructor(memory: CpuMemory, byteOffset: number, program: Program, threadIndex: number) {
    const words = memory.i32;
    const header = byteOffset / 4;
    this.#words = words;
    this.id = words[header + HEADER_AT.id]!;
    this.#progressAt = header + HEADER_AT.progress;
    this.#sleepersAt = header + HEADER_AT.sleepers;
    const numStages = words[header + HEADER_AT.stages]!;
    const numThreads = words[header + HEADER_AT.threads]!;
    this.#shares = new TaskShares(words, numThreads, threadIndex);
    const firstStage = header + LINE_WORDS;
    let launchAt = firstStage + numStages * stageWords(numThreads);
    const bind = (): BoundLaunch => {
      const at = launchAt;
      launchAt += LAUNCH_WORDS;
      const firstSlot = words[at + LAUNCH_AT.firstSlot]!;
      return {
        body: program.body(words[at + LAUNCH_AT.key]!),
        slots: memory.f64.subarray(firstSlot, firstSlot + words[at + LAUNCH_AT.slots]!),
        numTasks: words[at + LAUNCH_AT.tasks]!,
        grain: words[at + LAUNCH_AT.grain]!,
      };
    };
    this.#stages = Array.from({ length: numStages }, (_, index) => {
      const at = firstStage + index * stageWords(numThreads);
      const launches = Array.from({ length: words[at + STAGE_AT.launches]! }, bind);
      const numTasks = words[at + STAGE_AT.tasks]!;
      return {
        doneAt: at + STAGE_AT.done,
        tasks: { at: at + LINE_WORDS, numTasks, grain: launches[0]!.grain },
        isLaunchers: words[at + STAGE_AT.isLaunchers] === 1,
        launches,
      };
    });
  }

  /** Launcher: begin a replay; nobody is at the list. */
  reset(): void {
    for (const { doneAt, tasks } of this.#stages) {
      this.#words[doneAt] = 0;
      this.#shares.deal(tasks);
    }
    Atomics.store(this.#words, this.#progressAt, 0);
  }

  /** The only thread there is: everything in order. */
  runAlone(tick?: () => void): void {
    for (const [index, { launches }] of this.#stages.entries()) {
      if (index % STAGES_PER_TICK === 0) tick?.();
      for (const { body, slots, numTasks } of launches) body(slots, 0, numTasks);
    }
  }

  /** Launcher: all stages, with whoever joins. */
  lead(tick?: () => void): void {
    for (const [index, stage] of this.#stages.entries()) {
      if (index % STAGES_PER_TICK === 0) tick?.();
      if (stage.isLaunchers) {
        for (const { body, slots } of stage.launches) body(slots, 0, 1);
        this.#moveOn(index);
      } else {
        this.#work(stage, index);
        if (this.#awaitBeyond(index) === ABORTED) return;
      }
    }
  }

  /** Worker: help with what can be shared, until the list is done. */
  follow(): void {
    const numStages = this.#stages.length;
    let index = Atomics.load(this.#words, this.#progressAt);
    while (index < numStages) {
      const stage = this.#stages[index]!;
      if (!stage.isLaunchers) this.#work(stage, index);
      index = this.#awaitBeyond(index);
    }
  }

  /** After a failure on any thread: all leave. */
  abort(): void {
    Atomics.store(this.#words, this.#progressAt, ABORTED);
    Atomics.notify(this.#words, this.#progressAt);
  }

  /** Claim and run tasks of a stage until none is left. */
  #work({ doneAt, tasks, launches }: BoundStage, index: number): void {
    const count = this.#shares.run(tasks, (first, end) => {
      let start = 0;
      for (const launch of launches) {
        const [from, to] = [Math.max(first - start, 0), Math.min(end - start, launch.numTasks)];
        if (from < to) launch.body(launch.slots, from, to);
        start += launch.numTasks;
      }
    });
    if (count === 0) return;
    if (Atomics.add(this.#words, doneAt, count) + count === tasks.numTasks) this.#moveOn(index);
  }

  #moveOn(index: number): void {
    const words = this.#words;
    Atomics.compareExchange(words, this.#progressAt, index, index + 1);
    if (Atomics.load(words, this.#sleepersAt) > 0) Atomics.notify(words, this.#progressAt);
  }

  /** Wait until more than `index` stages are done; returns how many are. */
  #awaitBeyond(index: number): number {
    const words = this.#words;
    for (let spins = SPINS; ; spins--) {
      const progress = Atomics.load(words, this.#progressAt);
      if (progress > index) return progress;
      if (spins > 0) {
        pause();
        continue;
      }
      Atomics.add(words, this.#sleepersAt, 1);
      const answer = Atomics.wait(words, this.#progressAt, progress, LOST_AFTER_MS);
      assert(answer !== "timed-out", `stage ${index} of a launch list was not done in time`);
      Atomics.sub(words, this.#sleepersAt, 1);
    }
  }
}

/** The lists that one thread has met, by place. */
export class BoundLists {
  readonly #memory: CpuMemory;
  readonly #program: Program;
  readonly #threadIndex: number;
  readonly #lists = new Map<number, BoundList>();

  constructor(memory: CpuMemory, program: Program, threadIndex: number) {
    this.#memory = memory;
    this.#program = program;
    this.#threadIndex = threadIndex;
  }

  /** The list at a place, bound anew if another has taken the place. */
  at(byteOffset: number): BoundList {
    const id = this.#memory.i32[byteOffset / 4 + HEADER_AT.id];
    const known = this.#lists.get(byteOffset);
    if (known !== undefined && known.id === id) return known;
    const bound = new BoundList(this.#memory, byteOffset, this.#program, this.#threadIndex);
    this.#lists.set(byteOffset, bound);
    return bound;
  }
}

/** Places for lists: given back when a list is disposed of, used again for one that fits. */
export class ListPlaces {
  readonly #memory: CpuMemory;
  readonly #free = new Map<number, number[]>();

  constructor(memory: CpuMemory) {
    this.#memory = memory;
  }

  take(bytes: number): { readonly byteOffset: number; readonly release: () => void } {
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 4096)));
    const free = this.#free.get(size) ?? [];
    this.#free.set(size, free);
    const byteOffset = free.pop() ?? this.#memory.reserve(size);
    let isTaken = true;
    const release = (): void => {
      assert(isTaken, "a launch list is disposed of once");
      isTaken = false;
      defined(this.#free.get(size), "places of this size").push(byteOffset);
    };
    return { byteOffset, release };
  }
}
