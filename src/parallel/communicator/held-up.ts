/**
 * @file For how long the system kept threads of this process from running: others had the
 * processors, or a disk had to answer.
 *
 * Linux says it of each thread (/proc/self/task): nanoseconds in which it could have run and did
 * not (schedstat, the second number), and the state it is in (stat; D is a wait that nothing
 * interrupts, for a disk most of all). What counts is the thread that was held up longest: others
 * may wait for it. Elsewhere nothing is known and nothing is forgiven.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { basename } from "node:path";

const TASKS = "/proc/self/task";
/** Looks are no closer than this. */
const LOOK_MS = 200;

interface Look {
  readonly atMs: number;
  /** Milliseconds each thread has waited for a processor since it began. */
  readonly waitedMs: ReadonlyMap<string, number>;
}

export class HeldUp {
  /** A thread that is not looked at. */
  readonly #except: string | null;
  #last: Look | null = null;
  #totalMs = 0;

  /** Looks at all threads of the process but `except`, as `thisThread` names it. */
  constructor(except: string | null) {
    this.#except = except;
  }

  /** Milliseconds so far, in times that were looked at: a first look finds none. */
  totalMs(nowMs: number): number {
    if (this.#last !== null && nowMs - this.#last.atMs < LOOK_MS) return this.#totalMs;
    const waitedMs = new Map<string, number>();
    let longestMs = 0;
    const elapsedMs = nowMs - (this.#last?.atMs ?? nowMs);
    for (const thread of threads()) {
      if (thread === this.#except) continue;
      const { waited, isInDisk } = stateOf(thread);
      waitedMs.set(thread, waited);
      const before = this.#last?.waitedMs.get(thread) ?? waited;
      longestMs = Math.max(longestMs, isInDisk ? elapsedMs : waited - before);
    }
    this.#totalMs += Math.min(longestMs, elapsedMs);
    this.#last = { atMs: nowMs, waitedMs };
    return this.#totalMs;
  }
}

/** The system's number of the calling thread; null where it has none to be found. */
export function thisThread(): string | null {
  try {
    return basename(readlinkSync("/proc/thread-self"));
  } catch {
    return null;
  }
}

function threads(): readonly string[] {
  try {
    return readdirSync(TASKS);
  } catch {
    return [];
  }
}

function stateOf(thread: string): { readonly waited: number; readonly isInDisk: boolean } {
  try {
    const waited = Number(readFileSync(`${TASKS}/${thread}/schedstat`, "utf8").split(" ")[1]) / 1e6;
    const stat = readFileSync(`${TASKS}/${thread}/stat`, "utf8");
    const state = stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3);
    return { waited, isInDisk: state === "D" };
  } catch {
    // It has ended meanwhile, or the system does not keep these numbers.
    return { waited: 0, isInDisk: false };
  }
}
