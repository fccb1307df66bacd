/**
 * @file A device that shows with every launch, and on the way of replayed ones, that whoever uses
 * it lives.
 *
 * A chunk of a large model, an optimizer step, or a step of an engine on slow kernels may take
 * longer than others wait for a sign of life; no single launch does.
 */
import type { Device, LaunchList } from "./device.ts";

/** `device` itself but for the signs; disposing of it is the owner's. */
export function tickingDevice(device: Device, tick: () => void): Device {
  return {
    kind: device.kind,
    memory: device.memory,
    numThreads: device.numThreads,
    nativeRefusal: device.nativeRefusal,
    launch: (key, slots, numTasks) => {
      tick();
      device.launch(key, slots, numTasks);
    },
    together: (work) => device.together(work),
    record: (work): LaunchList => {
      const list = device.record(work);
      return {
        numLaunches: list.numLaunches,
        replay: (others) => {
          list.replay(() => {
            tick();
            others?.();
          });
        },
        [Symbol.dispose]: () => list[Symbol.dispose](),
      };
    },
    synchronize: () => device.synchronize(),
    reports: () => device.reports(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}
