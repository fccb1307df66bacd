/**
 * @file A device owns memory, launches kernels and has an order of execution.
 *
 * On the CPU a launch is done when it returns. A device with a stream of its own may return
 * earlier: only `synchronize` waits. Code above this floor treats both alike.
 */
import type { CpuMemory } from "./cpu/memory.ts";
import type { KernelReport } from "./program.ts";

export interface Device extends AsyncDisposable {
  readonly kind: "cpu";
  readonly memory: CpuMemory;
  /** Threads that share a launch, the caller's included. */
  readonly numThreads: number;
  /**
   * Run tasks [0, numTasks) of kernel `key` ("name/variant") with these slots; at most `MAX_SLOTS`
   * of them.
   */
  launch(key: string, slots: readonly number[], numTasks: number): void;
  /**
   * Run `work`, whose launches do not wait for each other: none reads or writes what another
   * writes. On its own this changes nothing; a launch list runs them at once.
   */
  together(work: () => void): void;
  /** Run `work` and keep its launches, in order, for replaying them. */
  record(work: () => void): LaunchList;
  /** Wait for everything launched before. */
  synchronize(): Promise<void>;
  /** Which implementation each kernel has here, and why. */
  reports(): readonly KernelReport[];
  /** Why native code is off, or "" if it is on. */
  readonly nativeRefusal: string;
}

/**
 * Launches that were recorded once and are replayed as one: the same kernels over the same memory
 * with the same slots and tasks, and no TypeScript around them. What differs from one replay to the
 * next is what stands in memory. So a list is right where nothing outside the kernels looks at data
 * on the way, and whoever fills the inputs keeps indexes within the bounds that held when it was
 * recorded: doors are not passed again.
 */
export interface LaunchList extends Disposable {
  readonly numLaunches: number;
  /** `tick` is called when it begins, and again and again on the way of a long one. */
  replay(tick?: () => void): void;
}

/** The most slots a launch can carry. */
export const MAX_SLOTS = 64;
