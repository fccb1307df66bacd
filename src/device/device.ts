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
  /** Wait for everything launched before. */
  synchronize(): Promise<void>;
  /** Which implementation each kernel has here, and why. */
  reports(): readonly KernelReport[];
  /** Why native code is off, or "" if it is on. */
  readonly nativeRefusal: string;
}

/** The most slots a launch can carry. */
export const MAX_SLOTS = 64;
