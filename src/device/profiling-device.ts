/**
 * @file A device that measures where the time goes: every launch timed, summed by kernel.
 *
 * For devices whose launches are done when they return; the price is one clock reading a launch.
 */
import type { CpuMemory } from "./cpu/memory.ts";
import type { Device, LaunchList } from "./device.ts";
import type { KernelReport } from "./program.ts";

export class ProfilingDevice implements Device {
  readonly kind: Device["kind"];
  readonly memory: CpuMemory;
  readonly numThreads: number;
  readonly nativeRefusal: string;
  readonly #device: Device;
  readonly #seconds = new Map<string, number>();

  constructor(device: Device) {
    this.#device = device;
    this.kind = device.kind;
    this.memory = device.memory;
    this.numThreads = device.numThreads;
    this.nativeRefusal = device.nativeRefusal;
  }

  launch(key: string, slots: readonly number[], numTasks: number): void {
    this.#time(key, () => this.#device.launch(key, slots, numTasks));
  }

  together(work: () => void): void {
    this.#device.together(work);
  }

  /** A replay is timed as a whole. */
  record(work: () => void): LaunchList {
    const list = this.#device.record(work);
    return {
      numLaunches: list.numLaunches,
      replay: (tick) => this.#time("launch list", () => list.replay(tick)),
      [Symbol.dispose]: () => list[Symbol.dispose](),
    };
  }

  #time(key: string, run: () => void): void {
    const start = performance.now();
    run();
    const elapsed = (performance.now() - start) / 1000;
    this.#seconds.set(key, (this.#seconds.get(key) ?? 0) + elapsed);
  }

  /** Seconds by kernel key since the last reset. */
  get seconds(): ReadonlyMap<string, number> {
    return this.#seconds;
  }

  reset(): void {
    this.#seconds.clear();
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
