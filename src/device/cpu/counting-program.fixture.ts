/** @file A program for the device's own tests: one kernel that counts each task, one that fails. */
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

export function createProgram(context: ThreadContext): Program {
  const bodies = [count(context), failOnWorkers(context), failOnLauncher(context)];
  const keys = ["count/i32", "failOnWorkers/i32", "failOnLauncher/i32"];
  return {
    keys,
    body: (keyIndex) => bodies[keyIndex]!,
    report: (keyIndex) => ({ key: keys[keyIndex]!, target: "reference", reasons: [] }),
  };
}
