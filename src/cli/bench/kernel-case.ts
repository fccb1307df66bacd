/** @file One case of `hadal bench kernels`, and what its operands hold. */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import type { KernelChoice } from "../../device/program.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";

/** A kernel ready to be timed, and what one run of it costs. */
export interface Prepared {
  run(): void;
  readonly flops?: number;
  /** Each operand counted once. */
  readonly bytes?: number;
  /** The same work by another kernel, timed in turns with this one. */
  readonly rival?: { readonly name: string; readonly run: () => void };
}

export interface KernelCase {
  readonly name: string;
  readonly shape: string;
  readonly kernels: Exclude<KernelChoice, "auto">;
  readonly numThreads: number;
  /** Which peak the share is of. */
  readonly bound: "f32" | "bf16" | "triad" | "update";
  prepare(device: Device, arena: Arena): Prepared;
}

export function normal(arena: Arena, shape: readonly number[]): Tensor<"f32"> {
  const tensor = arena.allocate("f32", shape);
  const random = new Random(1, shape.join("×"));
  // A short random pattern, repeated: what the values are does not matter, that they are not zero
  // does.
  const pattern = Float32Array.from({ length: 4096 }, () => random.normal());
  const values = view(tensor);
  for (let at = 0; at < values.length; at += pattern.length) {
    values.set(pattern.subarray(0, Math.min(pattern.length, values.length - at)), at);
  }
  return tensor;
}
