/**
 * @file Elements of device memory by dtype, for reference kernels: read and write as numbers,
 * whatever the format.
 *
 * Made for clarity, not for speed: one call per element.
 */
import type { CpuMemory } from "../device/cpu/memory.ts";
import { fromBf16, toBf16 } from "../numerics/bf16.ts";
import { E4M3, E5M2 } from "../numerics/fp8.ts";
import { encodeSmallFloat } from "../numerics/small-float.ts";
import type { DType } from "../tensor/dtype.ts";
import { DTYPE_BYTES } from "../tensor/dtype.ts";

/** Elements counted from a byte offset. */
export interface Elements {
  get(index: number): number;
  set(index: number, value: number): void;
}

/** The elements of `dtype` that start at `byteOffset`. */
export function elementsAt(memory: CpuMemory, dtype: DType, byteOffset: number): Elements {
  const first = byteOffset / DTYPE_BYTES[dtype];
  if (dtype === "bf16") {
    const codes = memory.u16;
    return {
      get: (index) => fromBf16(codes[first + index]!),
      set: (index, value) => {
        codes[first + index] = toBf16(value);
      },
    };
  }
  if (dtype === "e4m3" || dtype === "e5m2") {
    const format = dtype === "e4m3" ? E4M3 : E5M2;
    const codes = memory.u8;
    return {
      get: (index) => format.values[codes[first + index]!]!,
      set: (index, value) => {
        codes[first + index] = encodeSmallFloat(format, value);
      },
    };
  }
  const array = memory[dtype];
  return {
    get: (index) => array[first + index]!,
    set: (index, value) => {
      array[first + index] = value;
    },
  };
}
