/** @file A thread as kernels find it, for tests that run machine code without a device. */
import { CpuMemory } from "../device/cpu/memory.ts";
import { createNativeRuntime } from "../device/cpu/native.ts";
import type { ThreadContext } from "../device/program.ts";

export interface NativeThread {
  readonly context: ThreadContext;
  /** Why no machine code runs here; "" if it does. */
  readonly reason: string;
}

const ARGUMENT_BYTES = 512;

/** A thread with memory of its own and so much scratch. */
export function nativeThread(scratchBytes: number): NativeThread {
  const { runtime, reason } = createNativeRuntime();
  const memory = CpuMemory.create(runtime);
  const span = (byteLength: number): ThreadContext["scratch"] => ({
    byteOffset: memory.reserve(byteLength),
    byteLength,
  });
  const scratch = span(scratchBytes);
  const argumentBlock = span(ARGUMENT_BYTES);
  return { context: { memory, threadIndex: 0, scratch, argumentBlock, native: runtime }, reason };
}
