/**
 * @file The body of a worker thread: builds its own program over the shared memory and serves the
 * job.
 */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../base/errors.ts";
import type { CreateProgram, KernelChoice, Span } from "../program.ts";
import { Job } from "./job.ts";
import { BoundLists } from "./launch-list.ts";
import { CpuMemory } from "./memory.ts";
import { createNativeRuntime } from "./native.ts";

/** What a worker is told when it starts. */
export interface WorkerStart {
  readonly wasm: WebAssembly.Memory;
  readonly baseAddress: number;
  readonly job: SharedArrayBuffer;
  readonly threadIndex: number;
  readonly scratch: Span;
  readonly argumentBlock: Span;
  readonly programUrl: string;
  readonly choice: KernelChoice;
  readonly native: boolean;
}

const start = workerData as WorkerStart;
const { createProgram } = (await import(start.programUrl)) as { createProgram: CreateProgram };
const memory = CpuMemory.attach(start.wasm, start.baseAddress);
const program = createProgram(
  {
    memory,
    threadIndex: start.threadIndex,
    scratch: start.scratch,
    argumentBlock: start.argumentBlock,
    native: start.native ? createNativeRuntime().runtime : null,
  },
  start.choice,
);
defined(parentPort, "parentPort").postMessage("ready");
const lists = new BoundLists(memory, program, start.threadIndex);
Job.attach(start.job, start.threadIndex).serve(
  (keyIndex) => program.body(keyIndex),
  (byteOffset) => lists.at(byteOffset),
);
