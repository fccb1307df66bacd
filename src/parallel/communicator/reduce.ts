/**
 * @file The arithmetic of reductions: vectors of all ranks, in the order of ranks, into one.
 *
 *     out[i] = round(Σ_rank x_rank[i])        the sum in f64, rounded once to the element type
 *
 * The order does not depend on who computes it or when messages arrive, so every backend gives the
 * same bits. Not reduced: u8, which holds codes that cannot be added without their scales.
 */
import { assert, unreachable } from "../../base/errors.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { fromBf16, toBf16 } from "../../numerics/bf16.ts";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.ts";
import type { Reduction } from "./communicator.ts";

/**
 * One vector for each rank, in the order of ranks, by where it stands; `out` may be one of them.
 */
export interface VectorReduction {
  readonly dtype: DType;
  readonly count: number;
  readonly sources: readonly number[];
  readonly out: number;
  readonly reduction: Reduction;
}

/** `sums` is scratch for at least `count` elements. */
export function reduceVectors(
  memory: CpuMemory,
  { dtype, count, sources, out, reduction }: VectorReduction,
  sums: Float64Array,
): void {
  assert(sums.length >= count, `scratch of ${sums.length} elements for ${count}`);
  for (const [rank, byteOffset] of sources.entries()) {
    const first = byteOffset / DTYPE_BYTES[dtype];
    const vector = viewOf(memory, dtype).subarray(first, first + count);
    const values = dtype === "bf16" ? decode(vector as Uint16Array) : vector;
    if (rank === 0) sums.set(values);
    else combine(sums, values, reduction);
  }
  const first = out / DTYPE_BYTES[dtype];
  const target = viewOf(memory, dtype).subarray(first, first + count);
  if (dtype === "bf16") {
    for (let index = 0; index < count; index++) target[index] = toBf16(Math.fround(sums[index]!));
  } else target.set(sums.subarray(0, count));
}

type Values = Float32Array | Float64Array | Int32Array | Uint16Array;

function viewOf(memory: CpuMemory, dtype: DType): Values {
  switch (dtype) {
    case "f32":
      return memory.f32;
    case "f64":
      return memory.f64;
    case "i32":
      return memory.i32;
    case "bf16":
      return memory.u16;
    default:
      return unreachable(`${dtype} travels as bytes and is not reduced`);
  }
}

function decode(codes: Uint16Array): Float32Array {
  return Float32Array.from(codes, (code) => fromBf16(code));
}

function combine(sums: Float64Array, values: Values, reduction: Reduction): void {
  const count = values.length;
  if (reduction === "sum") {
    for (let index = 0; index < count; index++) sums[index]! += values[index]!;
  } else if (reduction === "max") {
    for (let index = 0; index < count; index++)
      sums[index] = Math.max(sums[index]!, values[index]!);
  } else {
    for (let index = 0; index < count; index++)
      sums[index] = Math.min(sums[index]!, values[index]!);
  }
}
