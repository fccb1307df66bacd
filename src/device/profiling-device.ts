/**
 * @file A device that measures where the time goes: every launch timed, summed by kernel, while it
 * is asked to.
 *
 * For devices whose launches are done when they return; the price is one clock reading a launch,
 * and that launches which were recorded are launched one by one. All else is passed on as it is.
 */
import type { CpuMemory } from "./cpu/memory.ts";
import type { Device, LaunchList } from "./device.ts";
import type { KernelReport } from "./program.ts";

type Launch = Parameters<Device["launch"]>;

export class ProfilingDevice implements Device {
  readonly kind: Device["kind"];
  readonly memory: CpuMemory;
  readonly numThreads: number;
  readonly nativeRefusal: string;
  readonly #device: Device;
  /** By kernel, of the work that is measured; null: none is. */
  #seconds: Map<string, number> | null = null;
  #recording: Launch[] | null = null;

  constructor(device: Device) {
    this.#device = device;
    this.kind = device.kind;
    this.memory = device.memory;
    this.numThreads = device.numThreads;
    this.nativeRefusal = device.nativeRefusal;
  }

  /** Seconds in launches of `work`, by kernel key. */
  measure(work: () => void): ReadonlyMap<string, number> {
    const seconds = new Map<string, number>();
    this.#seconds = seconds;
    try {
      work();
    } finally {
      this.#seconds = null;
    }
    return seconds;
  }

  launch(...launch: Launch): void {
    this.#recording?.push(launch);
    const start = performance.now();
    this.#device.launch(...launch);
    if (this.#seconds === null) return;
    const [key] = launch;
    const elapsed = (performance.now() - start) / 1000;
    this.#seconds.set(key, (this.#seconds.get(key) ?? 0) + elapsed);
  }

  together(work: () => void): void {
    this.#device.together(work);
  }

  record(work: () => void): LaunchList {
    const launches: Launch[] = [];
    this.#recording = launches;
    try {
      const list = this.#device.record(work);
      return {
        numLaunches: list.numLaunches,
        replay: (tick) => {
          if (this.#seconds === null) {
            list.replay(tick);
            return;
          }
          tick?.();
          for (const launch of launches) this.launch(...launch);
        },
        [Symbol.dispose]: () => list[Symbol.dispose](),
      };
    } finally {
      this.#recording = null;
    }
  }

  synchronize(): Promise<void> {
    return this.#device.synchronize();
  }

  reports(): readonly KernelReport[] {
    return this.#device.reports();
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#device[Symbol.asyncDispose]();
  }
}
