/**
 * @file The FLOP/s that matrix products can reach on a device, measured in a blink: what MFU is a
 * share of.
 */
import type { Device } from "../../device/device.ts";
import { computeTypeOf } from "../../model/parameters.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { measureArithmeticPeaks } from "./peaks.ts";

/**
 * FLOP/s of all threads together at what the products are made of; FP8 products are multiplied in
 * bf16.
 */
export function measureProductPeak(device: Device, recipe: PrecisionRecipe): number {
  const { f32Gflops, bf16Gflops, wasmF32Gflops } = measureArithmeticPeaks();
  const native = device.nativeRefusal === "";
  const perThread =
    native && computeTypeOf(recipe) === "bf16" ? bf16Gflops : native ? f32Gflops : null;
  return (perThread ?? wasmF32Gflops) * 1e9 * device.numThreads;
}
