/**
 * @file The CPU device: shared memory, the calling thread and its workers.
 *
 * A launch is synchronous. A launch of one task runs on the calling thread without waking anybody;
 * a larger one is claimed in chunks by all threads.
 */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { assert, defined, InvariantError, OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import { siblingModule } from "../../base/modules.ts";
import { type Device, type LaunchList, MAX_SLOTS } from "../device.ts";
import {
  type CreateProgram,
  KERNEL_CHOICES,
  type KernelChoice,
  type KernelReport,
  type Program,
  type Span,
} from "../program.ts";
import { Job } from "./job.ts";
import { BoundList, ListPlaces, listBytes, type RecordedLaunch, writeList } from "./launch-list.ts";
import { CpuMemory, HUGE_PAGE_BYTES } from "./memory.ts";
import { createNativeRuntime } from "./native.ts";
import type { WorkerStart } from "./worker.ts";

/** Packed panels of a matrix product and the score blocks of attention fit in half each. */
const SCRATCH_BYTES = 16 * 2 ** 20;
/** Panels begin at its beginning; further on a thread touches little here and there. */
const HUGE_SCRATCH_BYTES = HUGE_PAGE_BYTES;
/**
 * Chunks a thread claims in one launch, so that an uneven split levels out, and a thread that the
 * system interrupts delays the others by one small chunk.
 */
const CLAIMS_PER_THREAD = 16;
/**
 * More threads than this would take too much of 4 GiB for their scratch, and memory bandwidth is
 * long used up.
 */
const MAX_THREADS = 64;

export interface CpuDeviceOptions {
  /** Threads that share a launch, the caller's included; the machine's parallelism if left out. */
  readonly numThreads?: number;
  readonly kernels?: KernelChoice;
}

/** Options left out by the caller, from `HADAL_KERNELS` and `HADAL_THREADS`. */
export function cpuOptionsFromEnvironment(environment: NodeJS.ProcessEnv): CpuDeviceOptions {
  const kernels = environment["HADAL_KERNELS"];
  const threads = environment["HADAL_THREADS"];
  if (kernels !== undefined && !KERNEL_CHOICES.includes(kernels as KernelChoice)) {
    throw new OperationalError(
      "device.option",
      `HADAL_KERNELS (${kernels}) must be one of ${KERNEL_CHOICES.join(", ")}`,
    );
  }
  if (threads !== undefined && !(/^[1-9]\d?$/.test(threads) && Number(threads) <= MAX_THREADS)) {
    throw new OperationalError(
      "device.option",
      `HADAL_THREADS (${threads}) must be a whole number from 1 to ${MAX_THREADS}`,
    );
  }
  return {
    ...(kernels === undefined ? {} : { kernels: kernels as KernelChoice }),
    ...(threads === undefined ? {} : { numThreads: Number(threads) }),
  };
}

/**
 * Start a device whose kernels are made by `createProgram` of the module at `programUrl`, on every
 * thread.
 */
export async function startCpuDevice(programUrl: URL, options: CpuDeviceOptions): Promise<Device> {
  const { createProgram } = (await import(programUrl.href)) as { createProgram: CreateProgram };
  const choice = options.kernels ?? "auto";
  const native =
    choice === "auto" || choice === "x64"
      ? createNativeRuntime()
      : { runtime: null, reason: `HADAL_KERNELS=${choice}` };
  const memory = CpuMemory.create(native.runtime);
  const span = (byteLength: number): Span => ({
    byteOffset: memory.reserve(byteLength),
    byteLength,
  });
  const makeSpans = (): { scratch: Span; argumentBlock: Span } => {
    const scratch = span(SCRATCH_BYTES);
    memory.useHugePages(scratch.byteOffset, scratch.byteOffset + HUGE_SCRATCH_BYTES);
    return { scratch, argumentBlock: span(MAX_SLOTS * 8) };
  };
  const program = createProgram(
    { memory, threadIndex: 0, ...makeSpans(), native: native.runtime },
    choice,
  );
  const numThreads = options.numThreads ?? Math.min(availableParallelism(), MAX_THREADS);
  assert(
    isIntegerIn(numThreads, 1, MAX_THREADS),
    `numThreads (${numThreads}): 1 to ${MAX_THREADS}`,
  );
  const job = Job.create(numThreads);
  const workers = await Promise.all(
    Array.from({ length: numThreads - 1 }, (_, index) =>
      startWorker({
        wasm: memory.wasm,
        baseAddress: memory.baseAddress,
        job: job.buffer,
        threadIndex: index + 1,
        ...makeSpans(),
        programUrl: programUrl.href,
        choice,
        native: native.runtime !== null,
      }),
    ),
  );
  return new CpuDevice(memory, program, job, workers, native.reason);
}

function startWorker(start: WorkerStart): Promise<Worker> {
  const worker = new Worker(siblingModule("./worker", import.meta.url), { workerData: start });
  return new Promise((resolve, reject) => {
    worker.once("error", reject);
    worker.once("message", () => {
      worker.unref();
      resolve(worker);
    });
  });
}

class CpuDevice implements Device {
  readonly kind = "cpu";
  readonly memory: CpuMemory;
  readonly nativeRefusal: string;
  readonly #program: Program;
  readonly #job: Job;
  readonly #workers: readonly Worker[];
  readonly #keyIndex: ReadonlyMap<string, number>;
  readonly #places: ListPlaces;
  #recording: RecordedLaunch[] | null = null;
  #numLists = 0;
  /** Of the launches that run together now; 0: none do. */
  #togetherId = 0;
  #numTogether = 0;

  constructor(
    memory: CpuMemory,
    program: Program,
    job: Job,
    workers: readonly Worker[],
    nativeRefusal: string,
  ) {
    this.memory = memory;
    this.nativeRefusal = nativeRefusal;
    this.#program = program;
    this.#job = job;
    this.#workers = workers;
    this.#places = new ListPlaces(memory);
    this.#keyIndex = new Map(program.keys.map((key, index) => [key, index]));
  }

  get numThreads(): number {
    return this.#workers.length + 1;
  }

  launch(key: string, slots: readonly number[], numTasks: number): void {
    const keyIndex = defined(this.#keyIndex.get(key), `kernel ${key}`);
    assert(slots.length <= MAX_SLOTS, `${key}: ${slots.length} slots; at most ${MAX_SLOTS}`);
    if (numTasks === 0) return;
    const body = this.#program.body(keyIndex);
    const grain = Math.max(1, Math.floor(numTasks / (this.numThreads * CLAIMS_PER_THREAD)));
    this.#recording?.push({ keyIndex, slots, numTasks, grain, togetherId: this.#togetherId });
    this.#job.slots.set(slots);
    if (numTasks === 1 || this.#workers.length === 0) {
      body(this.#job.slots, 0, numTasks);
      return;
    }
    this.#job.open(keyIndex, numTasks, grain);
    this.#runAndClose(key, () => this.#job.work(body));
  }

  together(work: () => void): void {
    assert(this.#togetherId === 0, "launches together are not nested");
    this.#togetherId = ++this.#numTogether;
    try {
      work();
    } finally {
      this.#togetherId = 0;
    }
  }

  record(work: () => void): LaunchList {
    assert(this.#recording === null, "one recording at a time");
    const launches: RecordedLaunch[] = [];
    this.#recording = launches;
    try {
      work();
    } finally {
      this.#recording = null;
    }
    const { numThreads } = this;
    const place = this.#places.take(listBytes(launches, numThreads));
    writeList(this.memory, place.byteOffset, { id: ++this.#numLists, launches, numThreads });
    const list = new BoundList(this.memory, place.byteOffset, this.#program, 0);
    return {
      numLaunches: launches.length,
      replay: (tick) => this.#replay(list, place.byteOffset, tick),
      [Symbol.dispose]: place.release,
    };
  }

  #replay(list: BoundList, byteOffset: number, tick?: () => void): void {
    assert(this.#recording === null, "a launch list is not replayed into another");
    if (this.#workers.length === 0) {
      list.runAlone(tick);
      return;
    }
    list.reset();
    this.#job.openList(byteOffset);
    this.#runAndClose("a launch list", () => {
      try {
        list.lead(tick);
      } catch (error) {
        list.abort();
        throw error;
      }
    });
  }

  /** The launcher's part of an open job; a worker's failure is thrown. */
  #runAndClose(what: string, run: () => void): void {
    let failure: string | null = null;
    try {
      run();
    } finally {
      failure = this.#job.close();
    }
    if (failure !== null) throw new InvariantError(`${what} failed on a worker thread: ${failure}`);
  }

  async synchronize(): Promise<void> {}

  reports(): readonly KernelReport[] {
    return this.#program.keys.map((_, index) => this.#program.report(index));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#job.stop();
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}
