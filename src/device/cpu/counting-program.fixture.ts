/** @file A program for the device's own tests: kernels that count, add and fail. */
import { InvariantError } from "../../base/errors.ts";
import type { KernelBody, Program, ThreadContext } from "../program.ts";

/**
 * Slots of "count": the byte offset of an i32 per task, then the byte offset of an i32 per thread.
 */
function count(context: ThreadContext): KernelBody {
  return (slots, firstTask, endTask) => {
    const words = context.memory.i32;
    for (let task = firstTask; task < endTask; task++) {
      Atomics.add(words, slots[0]! / 4 + task, 1);
      Atomics.add(words, slots[1]! / 4 + context.threadIndex, 1);
    }
  };
}

/**
 * Fails on worker threads only; the launching thread waits in its task until a worker has a task
 * too.
 */
function failOnWorkers(context: ThreadContext): KernelBody {
  return (slots) => {
    const flag = slots[0]! / 4;
    if (context.threadIndex === 0) {
      while (Atomics.load(context.memory.i32, flag) === 0);
      return;
    }
    Atomics.store(context.memory.i32, flag, 1);
    throw new InvariantError("broken on purpose");
  };
}

/**
 * Fails on the launching thread only; workers wait in their tasks until that thread has a task, so
 * that they cannot claim all of them before it.
 */
function failOnLauncher(context: ThreadContext): KernelBody {
  return (slots) => {
    const words = context.memory.i32;
    const flag = slots[0]! / 4;
    if (context.threadIndex !== 0) {
      Atomics.wait(words, flag, 0);
      return;
    }
    Atomics.store(words, flag, 1);
    Atomics.notify(words, flag);
    throw new InvariantError("broken on the launcher");
  };
}

/** Fails on any thread once the i32 at its slot is set. */
function failWhenSet(context: ThreadContext): KernelBody {
  return (slots) => {
    if (context.memory.i32[slots[0]! / 4] !== 0) throw new InvariantError("broken when set");
  };
}

/** Adds 1 to the i32 of each task, without an atomic operation. */
function add(context: ThreadContext): KernelBody {
  return (slots, firstTask, endTask) => {
    const words = context.memory.i32;
    for (let task = firstTask; task < endTask; task++) words[slots[0]! / 4 + task]! += 1;
  };
}

/** Adds the sum of as many i32 as its second slot says to the i32 at its third. */
function sum(context: ThreadContext): KernelBody {
  return (slots) => {
    const words = context.memory.i32;
    const first = slots[0]! / 4;
    const values = words.subarray(first, first + slots[1]!);
    words[slots[2]! / 4]! += values.reduce((total, value) => total + value, 0);
  };
}

export function createProgram(context: ThreadContext): Program {
  const kernels = { count, failOnWorkers, failOnLauncher, failWhenSet, add, sum };
  const bodies = Object.values(kernels).map((create) => create(context));
  const keys = Object.keys(kernels).map((name) => `${name}/i32`);
  return {
    keys,
    body: (keyIndex) => bodies[keyIndex]!,
    report: (keyIndex) => ({ key: keys[keyIndex]!, target: "reference", reasons: [] }),
  };
}
