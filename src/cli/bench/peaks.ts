/**
 * @file What one core of this machine can do at most, measured: arithmetic that touches no memory,
 * and memory traffic that does no arithmetic. Kernels are judged against these, not against data
 * sheets.
 */

import { hasRelaxedSimd } from "../../codegen/wasm/features.ts";
import { WasmFunction } from "../../codegen/wasm/function.ts";
import { assembleModule, instantiate } from "../../codegen/wasm/module.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r, tmm, zmm } from "../../codegen/x64/operands.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { createNativeRuntime, type NativeRuntime } from "../../device/cpu/native.ts";
import {
  emitTileConfiguration,
  TILE_CONFIGURATION_WORDS,
} from "../../kernels/matmul/x64-tile-core.ts";
import { rowsBeyondCaches } from "./beyond-caches.ts";
import { timeRuns } from "./timing.ts";

/** Arithmetic of one core; a figure that cannot be measured here is null. */
export interface ArithmeticPeaks {
  /** Multiply and add counted apart, 512-bit registers, in GFLOP/s. */
  readonly f32Gflops: number | null;
  /**
   * Of the unit that multiplies bf16 here: AMX tiles (tdpbf16ps), else vectors of pairs
   * (vdpbf16ps), else those of f32, into which bf16 is widened.
   */
  readonly bf16Gflops: number | null;
  /** 128-bit multiply-adds in WebAssembly. */
  readonly wasmF32Gflops: number;
}

/** Arithmetic and memory traffic of one core. */
export interface Peaks extends ArithmeticPeaks {
  /** Bytes read and written by a = b + c over arrays beyond the caches, in GB/s. */
  readonly triadGbytesPerSecond: number;
  /** The same for a = a + a, in place: nothing is fetched only to be overwritten. */
  readonly updateGbytesPerSecond: number;
}

const SECONDS = 0.3;
const ITERATIONS = 200_000;
/** Independent sums, so that no instruction waits for the last one. */
const NUM_CHAINS = 24;
/** Sums in tiles, each 16 × 16 over 32 bf16 products an instruction. */
const NUM_TILE_CHAINS = 4;
const TILE_FLOPS = 2 * 16 * 16 * 32;
/** An array's share of a row, in the loops over arrays. */
const PIECE_BYTES = 4096;
const WASM_CHAINS = 12;

export function measureArithmeticPeaks(): ArithmeticPeaks {
  const { runtime, memory, slots } = openPlace();
  const wasmF32Gflops = wasmPeak(memory, slots);
  if (runtime === null) return { wasmF32Gflops, f32Gflops: null, bf16Gflops: null };
  const { amxBf16, avx512Bf16 } = runtime.features;
  const f32Gflops = vectorPeak(runtime, memory, slots, "vfmadd231ps", 32);
  const bf16Gflops = amxBf16
    ? tilePeak(runtime, memory, slots)
    : avx512Bf16
      ? vectorPeak(runtime, memory, slots, "vdpbf16ps", 64)
      : f32Gflops;
  return { wasmF32Gflops, f32Gflops, bf16Gflops };
}

export function measurePeaks(): Peaks {
  const { runtime, memory, slots } = openPlace();
  const arithmetic = measureArithmeticPeaks();
  if (runtime !== null) return { ...arithmetic, ...nativeTraffic(runtime, memory, slots) };
  const copy = plainCopy(memory);
  return { ...arithmetic, triadGbytesPerSecond: copy, updateGbytesPerSecond: copy };
}

/** Memory and native code of its own, and room for a few slots. */
function openPlace(): { runtime: NativeRuntime | null; memory: CpuMemory; slots: number } {
  const { runtime } = createNativeRuntime();
  const memory = CpuMemory.create(runtime);
  return { runtime, memory, slots: memory.reserve(4096) };
}

/** GFLOP/s of one vector instruction in a loop of independent chains. */
function vectorPeak(
  runtime: NativeRuntime,
  memory: CpuMemory,
  slots: number,
  op: "vfmadd231ps" | "vdpbf16ps",
  flopsEach: number,
): number {
  const code = emitKernel({
    body(a: X64): void {
      for (let index = 0; index < 32; index++) a.v("vpxord", [zmm(index), zmm(index), zmm(index)]);
      loadSlot(a, r.rax, 0);
      a.countdown(r.rax, 1, () => {
        for (let chain = 0; chain < NUM_CHAINS; chain++) a.v(op, [zmm(chain), zmm(30), zmm(31)]);
      });
    },
  });
  return (flopsEach * NUM_CHAINS * ITERATIONS) / bestSeconds(runtime, memory, slots, code) / 1e9;
}

/** GFLOP/s of products of AMX tiles, in a loop of independent sums. */
function tilePeak(runtime: NativeRuntime, memory: CpuMemory, slots: number): number {
  const code = emitKernel({
    numLocals: TILE_CONFIGURATION_WORDS,
    body(a: X64, local): void {
      emitTileConfiguration(a, a, local(0));
      for (let tile = 0; tile < NUM_TILE_CHAINS + 2; tile++) a.tilezero(tmm(tile));
      const [left, right] = [tmm(NUM_TILE_CHAINS), tmm(NUM_TILE_CHAINS + 1)];
      loadSlot(a, r.rax, 0);
      a.countdown(r.rax, 1, () => {
        for (let sum = 0; sum < NUM_TILE_CHAINS; sum++) a.tdpbf16ps(tmm(sum), left, right);
      });
      a.tilerelease();
    },
  });
  const flops = TILE_FLOPS * NUM_TILE_CHAINS * ITERATIONS;
  return flops / bestSeconds(runtime, memory, slots, code) / 1e9;
}

/** The shortest time of a kernel that takes ITERATIONS in its first slot. */
function bestSeconds(
  runtime: NativeRuntime,
  memory: CpuMemory,
  slots: number,
  code: Uint8Array,
): number {
  const kernel = runtime.load(code);
  memory.f64[slots / 8] = ITERATIONS;
  const run = (): void => kernel.call(memory.baseAddress + slots, 0, 0, memory.baseAddress);
  return timeRuns(run, SECONDS).best;
}

/** a = b + c with 512-bit loads and stores, over three arrays and over one. */
function nativeTraffic(
  runtime: NativeRuntime,
  memory: CpuMemory,
  slots: number,
): Pick<Peaks, "triadGbytesPerSecond" | "updateGbytesPerSecond"> {
  const code = emitKernel({
    body(a: X64): void {
      [r.r8, r.r9, r.r10].forEach((register, index) => {
        loadSlot(a, register, index);
        a.add(register, r.rcx);
      });
      loadSlot(a, r.rax, 3);
      a.countdown(r.rax, 256, () => {
        for (let offset = 0; offset < 256; offset += 64) {
          a.v("vmovups", [zmm(0), mem(r.r9, offset)]);
          a.v("vaddps", [zmm(0), zmm(0), mem(r.r10, offset)]);
          a.v("vmovups", [mem(r.r8, offset), zmm(0)]);
        }
        for (const register of [r.r8, r.r9, r.r10]) a.add(register, 256);
      });
    },
  });
  const kernel = runtime.load(code);
  const numBytes = arrayBytes(3);
  // At different places of a page: streams at the same distance modulo 4096 bytes slow each other.
  const arrays = [0, 1, 2].map((index) => memory.reserve(numBytes + 4096) + 1344 * index);
  memory.useHugePages(arrays[0]!, memory.reservedBytes);
  const rate = (places: readonly number[], bytes: number, numArrays: number): number => {
    memory.f64.set([...places, bytes], slots / 8);
    const run = (): void => kernel.call(memory.baseAddress + slots, 0, 0, memory.baseAddress);
    return (numArrays * bytes) / timeRuns(run, 2 * SECONDS).median / 1e9;
  };
  const [first] = arrays;
  // Three arrays, one behind the other, for what needs one.
  const end = arrays[2]! + numBytes - first!;
  return {
    triadGbytesPerSecond: rate(arrays, numBytes, 3),
    updateGbytesPerSecond: rate([first!, first!, first!], end - (end % 256), 2),
  };
}

/** Of each of so many arrays that no cache holds together. */
function arrayBytes(numArrays: number): number {
  return PIECE_BYTES * rowsBeyondCaches(numArrays * PIECE_BYTES).rows;
}

/** Without native code: one copy, which the engine does with the machine's best instructions. */
function plainCopy(memory: CpuMemory): number {
  const numBytes = arrayBytes(2);
  const [to, from] = [memory.reserve(numBytes), memory.reserve(numBytes)];
  const run = (): void => {
    memory.u8.copyWithin(to, from, from + numBytes);
  };
  return (2 * numBytes) / timeRuns(run, 2 * SECONDS).median / 1e9;
}

/** f(iterations): chains of f32x4 multiply-adds in locals. */
function wasmPeak(memory: CpuMemory, slots: number): number {
  const relaxed = hasRelaxedSimd();
  const body = new WasmFunction(["i32"]);
  const chains = Array.from({ length: WASM_CHAINS }, () => body.local("v128"));
  const factor = body.local("v128");
  body.countdown(0, 1, () => {
    for (const chain of chains) {
      body.get(factor).get(factor);
      if (relaxed) body.get(chain).op("f32x4.relaxed_madd");
      else body.op("f32x4.mul").get(chain).op("f32x4.add");
      body.set(chain);
    }
  });
  // The sums must be used, or the engine may drop them.
  for (const chain of chains) body.i32Const(slots).get(chain).memory("v128.store");
  const { run } = instantiate<"run">(assembleModule({ run: body }), memory.wasm);
  const timing = timeRuns(() => run(ITERATIONS), SECONDS);
  return (8 * WASM_CHAINS * ITERATIONS) / timing.best / 1e9;
}
