/**
 * @file What a device runs: kernel bodies, made once a thread, and what they may touch.
 *
 * A launch is a list of numbers (`slots`: byte offsets into the device's memory, sizes, strides,
 * scalars) and a count of independent tasks. Which thread runs which task never changes a bit of
 * the result: tasks write disjoint outputs, and the order of every sum depends on the slots alone.
 *
 * This floor knows no kernels. A module on a higher floor exports `createProgram`, and its address
 * is handed to the device, so that worker threads can import it.
 */

import type { CpuMemory } from "./cpu/memory.ts";
import type { NativeRuntime } from "./cpu/native.ts";

/**
 * Runs tasks [firstTask, endTask) of one launch. It never allocates device memory and keeps
 * nothing.
 */
export type KernelBody = (slots: Float64Array, firstTask: number, endTask: number) => void;

/**
 * Which implementations may be chosen: the best that runs here, or one family alone (reference
 * always stays).
 */
export const KERNEL_CHOICES = ["auto", "reference", "wasm", "x64"] as const;
export type KernelChoice = (typeof KERNEL_CHOICES)[number];

/** A span of device memory, in bytes. */
export interface Span {
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** What a kernel body may use on its thread. */
export interface ThreadContext {
  readonly memory: CpuMemory;
  /** 0 is the launching thread. */
  readonly threadIndex: number;
  /** This thread's own scratch, 4096-byte aligned: packed panels, score blocks. */
  readonly scratch: Span;
  /** This thread's own argument block for native calls: 64 slots of f64. */
  readonly argumentBlock: Span;
  /** Executable memory and calls into it; null where native code is off or impossible. */
  readonly native: NativeRuntime | null;
}

/** How one kernel will run, for `hadal doctor`. */
export interface KernelReport {
  readonly key: string;
  readonly target: string;
  /** Why better implementations were passed over; empty if the best was taken. */
  readonly reasons: readonly string[];
}

/** All kernels of one thread. Keys are the same, in the same order, on every thread. */
export interface Program {
  readonly keys: readonly string[];
  /** The body, generated at first use. */
  body(keyIndex: number): KernelBody;
  report(keyIndex: number): KernelReport;
}

export type CreateProgram = (context: ThreadContext, choice: KernelChoice) => Program;
