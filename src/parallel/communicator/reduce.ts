/**
 * @file The arithmetic of reductions: vectors of all ranks, in the order of ranks, into one.
 *
 *     out[i] = round(Σ_rank x_rank[i])        the sum in f64, rounded once to the element type
 *
 * The order does not depend on who computes it or when messages arrive, so every backend gives the
 * same bits. Not reduced: bytes and codes, which cannot be added without their scales.
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

/** All vectors, and the result, as places in one view of the memory. */
interface Places {
  readonly count: number;
  readonly firsts: readonly number[];
  readonly out: number;
}

type Reducible = Float32Array | Float64Array | Int32Array;

/** Elements of f64 sums that stay in the first-level cache. */
const BLOCK = 2048;

export function reduceVectors(memory: CpuMemory, call: VectorReduction): void {
  const { dtype, count, sources, out, reduction } = call;
  assert(sources.length >= 1, "a reduction has at least one vector");
  const bytes = DTYPE_BYTES[dtype];
  const places = { count, firsts: sources.map((offset) => offset / bytes), out: out / bytes };
  if (dtype === "bf16") reduceBf16(memory.u16, places, reduction);
  else if (dtype === "f32" || dtype === "f64" || dtype === "i32") {
    if (reduction === "sum") sum(memory[dtype], places);
    else choose(memory[dtype], places, reduction);
  } else unreachable(`${dtype} travels as bytes and is not reduced`);
}

/**
 * The last vector is added into the result itself, the others into f64 sums of a block, so that
 * each loop reads two streams. (One loop over all vectors for every element takes three times as
 * long.)
 */
function sum(values: Reducible, { count, firsts, out }: Places): void {
  const last = firsts.length - 1;
  if (last === 0) values.copyWithin(out, firsts[0]!, firsts[0]! + count);
  if (last === 1) addTwo(values, { a: firsts[0]!, b: firsts[1]!, out, count });
  if (last <= 1) return;
  const sums = new Float64Array(Math.min(count, BLOCK));
  for (let start = 0; start < count; start += BLOCK) {
    const length = Math.min(BLOCK, count - start);
    for (const [vector, first] of firsts.entries()) {
      const from = first + start;
      if (vector === 0) for (let i = 0; i < length; i++) sums[i] = values[from + i]!;
      else if (vector < last) for (let i = 0; i < length; i++) sums[i]! += values[from + i]!;
      else for (let i = 0; i < length; i++) values[out + start + i] = sums[i]! + values[from + i]!;
    }
  }
}

function addTwo(
  values: Reducible,
  { a, b, out, count }: { a: number; b: number; out: number; count: number },
): void {
  for (let i = 0; i < count; i++) values[out + i] = values[a + i]! + values[b + i]!;
}

function choose(values: Reducible, { count, firsts, out }: Places, reduction: "max" | "min"): void {
  const better = reduction === "max" ? Math.max : Math.min;
  for (let index = 0; index < count; index++) {
    let best = values[firsts[0]! + index]!;
    for (const first of firsts) best = better(best, values[first + index]!);
    values[out + index] = best;
  }
}

function reduceBf16(
  codes: Uint16Array,
  { count, firsts, out }: Places,
  reduction: Reduction,
): void {
  const pick = { sum: (a: number, b: number) => a + b, max: Math.max, min: Math.min }[reduction];
  for (let index = 0; index < count; index++) {
    let total = fromBf16(codes[firsts[0]! + index]!);
    for (let vector = 1; vector < firsts.length; vector++) {
      total = pick(total, fromBf16(codes[firsts[vector]! + index]!));
    }
    codes[out + index] = toBf16(total);
  }
}
