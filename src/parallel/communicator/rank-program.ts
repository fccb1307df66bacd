/**
 * @file A program that every rank runs: a module that exports `runRank`.
 *
 * The same module runs on threads and under MPI. Its result and what it is given cross threads, so
 * they are plain data.
 */
import type { MessagePort } from "node:worker_threads";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Communicator } from "./communicator.ts";

export interface RankContext {
  readonly rank: number;
  readonly size: number;
  readonly input: unknown;
  /** To who started the run, if this is rank 0 and it was given one. */
  readonly port?: MessagePort | undefined;
  /**
   * Collective, once: hands in the memory whose tensors will be sent, and gives the communicator of
   * all ranks.
   */
  join(memory: CpuMemory): Promise<Communicator>;
}

export type RunRank = (context: RankContext) => Promise<unknown>;

export interface RankProgram {
  readonly runRank: RunRank;
}

/** How ranks are run, whichever way. */
export interface RankOptions {
  /**
   * A rank that others wait for and that has shown no sign of life for this long is given up; a
   * communicator call and `tick` are signs of life.
   */
  readonly watchdogMs?: number;
}

/** Others end within ten seconds: this, and the time in which they notice. */
export const WATCHDOG_MS = 6000;
