/** @file Opening the CPU device with Hadal's kernels on it. */
import { siblingModule } from "../base/modules.ts";
import { type CpuDeviceOptions, startCpuDevice } from "../device/cpu/cpu-device.ts";
import type { Device } from "../device/device.ts";

/** A CPU device ready to run every kernel of this folder. */
export function openCpuDevice(options: CpuDeviceOptions = {}): Promise<Device> {
  return startCpuDevice(siblingModule("./program", import.meta.url), options);
}
