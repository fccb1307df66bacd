/** @file One case of `hadal bench kernels`, and what its operands hold. */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import type { KernelChoice } from "../../device/program.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { rowsBeyondCaches } from "./beyond-caches.ts";
import type { Traffic } from "./traffic.ts";

/** A kernel ready to be timed, and what one run of it costs. */
export interface Prepared {
  run(): void;
  readonly flops?: number;
  /** What a kernel moves that is judged by that. */
  readonly traffic?: Traffic;
  /** Where it is not the case's: chosen by the caches of this machine. */
  readonly shape?: string;
  /** The same work by another kernel, timed in turns with this one. */
  readonly rival?: { readonly name: string; readonly run: () => void };
}

export interface KernelCase {
  readonly name: string;
  readonly shape: string;
  readonly kernels: Exclude<KernelChoice, "auto">;
  readonly numThreads: number;
  /** Which peak the share is of; of memory, that of plain loops over the same operands. */
  readonly bound: "f32" | "bf16" | "memory";
  prepare(device: Device, arena: Arena): Prepared;
}

export function normal(arena: Arena, shape: readonly number[]): Tensor<"f32"> {
  const tensor = arena.allocate("f32", shape);
  const random = new Random(1, shape.join("×"));
  // A short random pattern, repeated: what the values are does not matter, that they are not zero
  // does.
  const pattern = Float32Array.from({ length: 4096 }, () => random.normal());
  fillWith(view(tensor), pattern);
  return tensor;
}

/** Repeat a pattern to the end. */
export function fillWith(
  values: Float32Array | Uint8Array,
  pattern: Float32Array | Uint8Array,
): void {
  for (let at = 0; at < values.length; at += pattern.length) {
    values.set(pattern.subarray(0, Math.min(pattern.length, values.length - at)), at);
  }
}

/** Columns of what row kernels are measured on, and the shape of their cases. */
export const ROW_COLUMNS = 2048;
export const ROWS_SHAPE: string = `N×${ROW_COLUMNS}`;

/** How many rows, and their shape in words; `rowBytes` are those of all operands. */
export function chooseRows(rowBytes: number): { readonly rows: number; readonly shape: string } {
  const { rows, remark } = rowsBeyondCaches(rowBytes);
  const shape = `${rows}×${ROW_COLUMNS}`;
  return { rows, shape: remark === "" ? shape : `${shape} (${remark})` };
}
