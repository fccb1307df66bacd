/**
 * @file What `hadal bench kernels` measures: products at the sizes of the field, row kernels beyond
 * the caches.
 */

import { median } from "../../base/median.ts";
import type { Device } from "../../device/device.ts";
import { adamw } from "../../kernels/adamw/contract.ts";
import { causalAttention, causalAttentionBackward } from "../../kernels/attention/contract.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { crossEntropy } from "../../kernels/cross-entropy/contract.ts";
import type { Transposition } from "../../kernels/matmul/block-multiplier.ts";
import { matmul } from "../../kernels/matmul/contract.ts";
import { rmsNorm } from "../../kernels/rms-norm/contract.ts";
import { softmaxCausal } from "../../kernels/softmax/contract.ts";
import { swiglu } from "../../kernels/swiglu/contract.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { type KernelCase, normal, type Prepared } from "./kernel-case.ts";
import type { Peaks } from "./peaks.ts";
import type { BenchRow } from "./row.ts";
import { SCALED_CASES } from "./scaled-cases.ts";
import { timeRuns } from "./timing.ts";

const SECONDS = 0.6;
/** 64 MiB of f32: no cache of a laptop or a server core holds it. */
const [ROWS, COLUMNS] = [8192, 2048];

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

type RowPrepare = (device: Device, arena: Arena) => Prepared;

const FLOAT_BYTES = 4;
const MATRIX_BYTES = ROWS * COLUMNS * FLOAT_BYTES;

const ROW_CASES: Readonly<Record<string, RowPrepare>> = {
  rmsNorm(device, arena) {
    const x = normal(arena, [ROWS, COLUMNS]);
    const gain = normal(arena, [1, COLUMNS]);
    const out = arena.allocate("f32", [ROWS, COLUMNS]);
    const run = (): void => rmsNorm(device, { x, gain, epsilon: 1e-6, out });
    return { run, bytes: 2 * MATRIX_BYTES };
  },
  swiglu(device, arena) {
    const gateUp = normal(arena, [ROWS, 2 * COLUMNS]);
    const out = arena.allocate("f32", [ROWS, COLUMNS]);
    return { run: () => swiglu(device, { gateUp, out }), bytes: 3 * MATRIX_BYTES };
  },
  softmaxCausal(device, arena) {
    const x = normal(arena, [ROWS, COLUMNS]);
    const out = arena.allocate("f32", [ROWS, COLUMNS]);
    const limits = arena.allocate("i32", [1, ROWS]);
    view(limits).fill(COLUMNS);
    return {
      run: () => softmaxCausal(device, { x, limits, scale: 1, out }),
      bytes: 2 * MATRIX_BYTES,
    };
  },
  castRows(device, arena) {
    const x = normal(arena, [ROWS, COLUMNS]);
    const out = arena.allocate("bf16", [ROWS, COLUMNS]);
    return { run: () => castRows(device, { x, out }), bytes: 1.5 * MATRIX_BYTES };
  },
  crossEntropy(device, arena) {
    const logits = normal(arena, [ROWS, COLUMNS]);
    const targets = arena.allocateZeros("i32", [1, ROWS]);
    const loss = arena.allocate("f32", [1, ROWS]);
    const logSumExp = arena.allocate("f32", [1, ROWS]);
    const call = { logits, targets, gradScale: 1, zLoss: 0, loss, logSumExp, grad: true };
    return { run: () => crossEntropy(device, call), bytes: 2 * MATRIX_BYTES };
  },
  adamw(device, arena) {
    const span = [1, ROWS * COLUMNS];
    const [parameter, gradient] = [normal(arena, span), normal(arena, span)];
    const [firstMoment, secondMoment] = [1, 2].map(() => arena.allocateZeros("f32", span)) as [
      Tensor<"f32">,
      Tensor<"f32">,
    ];
    const operands = { parameter, gradient, firstMoment, secondMoment };
    const hyper = { learningRate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
    const run = (): void => adamw(device, { ...operands, ...hyper, step: 10, gradientScale: 1 });
    return { run, bytes: 7 * MATRIX_BYTES };
  },
};

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
const IN_PLACE: ReadonlySet<string> = new Set(["adamw", "crossEntropy"]);
const TARGETS = ["x64", "wasm"] as const;

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
  ...Object.entries(ROW_CASES).flatMap(([name, prepare]) =>
    TARGETS.map(
      (kernels): KernelCase => ({
        name,
        shape: `${ROWS}×${COLUMNS}`,
        kernels,
        numThreads: 1,
        bound: IN_PLACE.has(name) ? "update" : "triad",
        prepare,
      }),
    ),
  ),
];

/** Time one case on a device of its own. */
export async function runKernelCase(kernelCase: KernelCase, peaks: Peaks): Promise<BenchRow> {
  const { name, shape, kernels, numThreads, bound } = kernelCase;
  await using device = await openCpuDevice({ kernels, numThreads });
  const prepared = kernelCase.prepare(device, new Arena(device.memory, "bench"));
  const { run, flops, bytes, rival } = prepared;
  const { median: seconds, ratio } =
    rival === undefined ? timeAlone(run) : timeInTurns(run, rival.run);
  const gflops = flops === undefined ? undefined : flops / seconds / 1e9;
  const gbytesPerSecond = bytes === undefined ? undefined : bytes / seconds / 1e9;
  const peak = peakOf(peaks, bound, kernels);
  const rate = gflops ?? gbytesPerSecond;
  return {
    name,
    shape,
    implementation: `${kernels} ×${numThreads}`,
    ...(gflops === undefined ? {} : { gflops }),
    ...(gbytesPerSecond === undefined ? {} : { gbytesPerSecond }),
    ...(peak === null || rate === undefined ? {} : { shareOfPeak: rate / peak / numThreads }),
    ...(rival === undefined || ratio === undefined ? {} : { against: rival.name, ratio }),
  };
}

interface Measured {
  /** Seconds a run. */
  readonly median: number;
  /** The rival's seconds over ours. */
  readonly ratio?: number;
}

function timeAlone(run: () => void): Measured {
  return { median: timeRuns(run, SECONDS).median };
}

/** Turns that two kernels take, so that what else the machine does falls on both. */
const TURNS = 7;

function timeInTurns(run: () => void, rival: () => void): Measured {
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
  bound: KernelCase["bound"],
  kernels: KernelCase["kernels"],
): number | null {
  if (bound === "triad") return peaks.triadGbytesPerSecond;
  if (bound === "update") return peaks.updateGbytesPerSecond;
  if (kernels === "wasm") return peaks.wasmF32Gflops;
  return bound === "f32" ? peaks.f32Gflops : peaks.bf16Gflops;
}
