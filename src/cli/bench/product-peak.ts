/**
 * @file The FLOP/s that matrix products can reach on a device, measured in a blink: what MFU is a
 * share of.
 */
import type { Device } from "../../device/device.ts";
import type { Precision } from "../../model/model-types.ts";
import { measureArithmeticPeaks } from "./peaks.ts";

/** FLOP/s of all threads together at what the products are made of. */
export function measureProductPeak(device: Device, precision: Precision): number {
  const { f32Gflops, bf16Gflops, wasmF32Gflops } = measureArithmeticPeaks();
  const native = device.nativeRefusal === "";
  const perThread = native && precision === "bf16" ? bf16Gflops : native ? f32Gflops : null;
  return (perThread ?? wasmF32Gflops) * 1e9 * device.numThreads;
}
