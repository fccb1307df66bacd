/**
 * @file What `hadal bench kernels` measures: products at the sizes of the field, row kernels beyond
 * the caches.
 */

import { defined } from "../../base/errors.ts";
import { median } from "../../base/median.ts";
import type { Device } from "../../device/device.ts";
import { causalAttention, causalAttentionBackward } from "../../kernels/attention/contract.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { Transposition } from "../../kernels/matmul/block-multiplier.ts";
import { matmul } from "../../kernels/matmul/contract.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type KernelCase, normal, type Prepared } from "./kernel-case.ts";
import type { Peaks } from "./peaks.ts";
import type { BenchRow } from "./row.ts";
import { ROW_CASES } from "./row-cases.ts";
import { SCALED_CASES } from "./scaled-cases.ts";
import { timeBeside, timeRuns } from "./timing.ts";
import { trafficBytes, trafficLoops } from "./traffic.ts";

const SECONDS = 0.6;

function productCase(
  dtype: "f32" | "bf16",
  transposition: Transposition,
  size: number,
  kernels: KernelCase["kernels"],
  numThreads: number,
): KernelCase {
  return {
    name: `matmul ${transposition} ${dtype}`,
    shape: `${size}×${size}×${size}`,
    kernels,
    numThreads,
    bound: dtype,
    prepare(device, arena): Prepared {
      const operand = (): Tensor<"f32" | "bf16"> => {
        const x = normal(arena, [size, size]);
        if (dtype === "f32") return x;
        const out = arena.allocate("bf16", [size, size]);
        castRows(device, { x, out });
        return out;
      };
      const [a, b] = [operand(), operand()];
      const out = arena.allocate("f32", [size, size]);
      const run = (): void => matmul(device, { transposition, a, b, out });
      return { run, flops: 2 * size ** 3 };
    },
  };
}

interface AttentionSize {
  readonly numSequences: number;
  readonly seqLength: number;
  readonly numHeads: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
}

/** The comparison model's, DeepSeek-V3's heads, and those over a long sequence. */
const ATTENTION_SIZES: readonly AttentionSize[] = [
  { numSequences: 16, seqLength: 256, numHeads: 8, nope: 32, rope: 16, value: 32 },
  { numSequences: 1, seqLength: 1024, numHeads: 4, nope: 128, rope: 64, value: 128 },
  { numSequences: 1, seqLength: 4096, numHeads: 1, nope: 128, rope: 64, value: 128 },
];

/** `bound` names the products' operands: f32, or rounded to bf16. */
function attentionCase(
  size: AttentionSize,
  direction: "forward" | "backward",
  bound: "f32" | "bf16",
): KernelCase {
  const { numSequences, seqLength, numHeads, nope, rope, value } = size;
  const shape = { ...size, scale: (nope + rope) ** -0.5 };
  const products = bound === "bf16" ? bound : "exact";
  const tokens = numSequences * seqLength;
  // Causal: half of the scores. Forward has two products, backward five (the scores once more).
  const pairs = (tokens * seqLength * numHeads) / 2;
  const flops =
    2 * pairs * (direction === "forward" ? nope + rope + value : 3 * (nope + rope) + 2 * value);
  return {
    name: `causalAttention${direction === "forward" ? "" : "Backward"} ${bound}`,
    shape: `${numSequences}×${seqLength}, ${numHeads} heads of ${nope}+${rope}/${value}`,
    kernels: "x64",
    numThreads: 1,
    bound,
    prepare(device, arena): Prepared {
      const q = normal(arena, [tokens, numHeads * (nope + rope)]);
      const kv = normal(arena, [tokens, numHeads * (nope + value)]);
      const keyRope = normal(arena, [tokens, rope]);
      const out = normal(arena, [tokens, numHeads * value]);
      if (direction === "forward") {
        const call = { q, kv, keyRope, out, shape, products } as const;
        return { run: () => causalAttention(device, call), flops };
      }
      const dQ = arena.allocate("f32", [tokens, q.columns]);
      const dKv = arena.allocate("f32", [tokens, kv.columns]);
      const dKeyRope = arena.allocate("f32", [tokens, numHeads * rope]);
      const call = { q, kv, keyRope, dOut: out, dQ, dKv, dKeyRope, shape, products } as const;
      return { run: () => causalAttentionBackward(device, call), flops };
    },
  };
}

/** Kernels whose outputs stand where their inputs stood. */
export const KERNEL_CASES: readonly KernelCase[] = [
  ...[512, 1024, 2048].map((size) => productCase("f32", "nt", size, "x64", 1)),
  ...[512, 1024, 2048].map((size) => productCase("bf16", "nt", size, "x64", 1)),
  productCase("bf16", "nn", 1024, "x64", 1),
  productCase("bf16", "tn", 1024, "x64", 1),
  productCase("f32", "nt", 1024, "x64", 2),
  productCase("bf16", "nt", 1024, "x64", 2),
  productCase("f32", "nt", 1024, "wasm", 1),
  productCase("bf16", "nt", 1024, "wasm", 1),
  ...SCALED_CASES,
  ...ATTENTION_SIZES.flatMap((size) =>
    (["forward", "backward"] as const).flatMap((direction) => [
      attentionCase(size, direction, "f32"),
      attentionCase(size, direction, "bf16"),
    ]),
  ),
  ...ROW_CASES,
];

/** Time one case on a device of its own. */
export async function runKernelCase(kernelCase: KernelCase, peaks: Peaks): Promise<BenchRow> {
  const { name, shape, kernels, numThreads, bound } = kernelCase;
  await using device = await openCpuDevice({ kernels, numThreads });
  const prepared = kernelCase.prepare(device, new Arena(device.memory, "bench"));
  const measured =
    bound === "memory"
      ? judgeByTraffic(device, prepared)
      : judgeByArithmetic(prepared, peakOf(peaks, bound, kernels), numThreads);
  const implementation = `${kernels} ×${numThreads}`;
  return { name, shape: prepared.shape ?? shape, implementation, ...measured };
}

type Measured = Omit<BenchRow, "name" | "shape" | "implementation">;

function judgeByArithmetic(prepared: Prepared, peak: number | null, numThreads: number): Measured {
  const { run, rival } = prepared;
  const flops = defined(prepared.flops, "operations");
  const { median: seconds, ratio } =
    rival === undefined ? { median: timeRuns(run, SECONDS).median } : timeInTurns(run, rival.run);
  const gflops = flops / seconds / 1e9;
  return {
    gflops,
    ...(peak === null ? {} : { shareOfPeak: gflops / peak / numThreads }),
    ...(rival === undefined || ratio === undefined ? {} : { against: rival.name, ratio }),
  };
}

/** The share is the median of the turns': what the machine does to one side it does to both. */
function judgeByTraffic(device: Device, prepared: Prepared): Measured {
  const traffic = defined(prepared.traffic, "operands");
  const { ours, shares } = timeBeside(prepared.run, trafficLoops(device, traffic));
  return {
    gbytesPerSecond: trafficBytes(traffic) / median(ours) / 1e9,
    shareOfPeak: median(shares),
  };
}

/** Turns that two kernels take, so that what else the machine does falls on both. */
const TURNS = 7;

function timeInTurns(run: () => void, rival: () => void): { median: number; ratio?: number } {
  const turns = Array.from({ length: TURNS }, () => ({
    ours: timeRuns(run, SECONDS / TURNS).median,
    theirs: timeRuns(rival, SECONDS / TURNS).median,
  }));
  return {
    median: median(turns.map(({ ours }) => ours)),
    ratio: median(turns.map(({ ours, theirs }) => theirs / ours)),
  };
}

/**
 * WebAssembly is judged by what 128-bit registers can do, and has no bf16 arithmetic of its own.
 */
function peakOf(
  peaks: Peaks,
  bound: "f32" | "bf16",
  kernels: KernelCase["kernels"],
): number | null {
  if (kernels === "wasm") return peaks.wasmF32Gflops;
  return bound === "f32" ? peaks.f32Gflops : peaks.bf16Gflops;
}
