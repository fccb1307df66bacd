/**
 * @file Row kernels of `hadal bench kernels`, over arrays beyond the caches: each in machine code
 * and in WebAssembly, judged by what its operands cost to move.
 */
import type { Device } from "../../device/device.ts";
import { adamw } from "../../kernels/adamw/contract.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { crossEntropy } from "../../kernels/cross-entropy/contract.ts";
import { rmsNorm } from "../../kernels/rms-norm/contract.ts";
import { softmaxCausal } from "../../kernels/softmax/contract.ts";
import { swiglu } from "../../kernels/swiglu/contract.ts";
import type { Arena } from "../../tensor/arena.ts";
import { reshape, sliceColumns, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import {
  chooseRows,
  type KernelCase,
  normal,
  type Prepared,
  ROW_COLUMNS,
  ROWS_SHAPE,
} from "./kernel-case.ts";

interface RowCase {
  /** Bytes of all operands for an element of a row. */
  readonly elementBytes: number;
  prepare(device: Device, arena: Arena, rows: number): Prepared;
}

const CASES: Readonly<Record<string, RowCase>> = {
  rmsNorm: {
    elementBytes: 8,
    prepare(device, arena, rows) {
      const x = normal(arena, [rows, ROW_COLUMNS]);
      const gain = normal(arena, [1, ROW_COLUMNS]);
      const out = arena.allocate("f32", [rows, ROW_COLUMNS]);
      const run = (): void => rmsNorm(device, { x, gain, epsilon: 1e-6, out });
      return { run, traffic: { reads: [x], writes: [out] } };
    },
  },
  swiglu: {
    elementBytes: 12,
    prepare(device, arena, rows) {
      const gateUp = normal(arena, [rows, 2 * ROW_COLUMNS]);
      const out = arena.allocate("f32", [rows, ROW_COLUMNS]);
      const [gate, up] = [0, 1].map((half) =>
        sliceColumns(gateUp, half * ROW_COLUMNS, (half + 1) * ROW_COLUMNS),
      ) as [Tensor, Tensor];
      const run = (): void => swiglu(device, { gateUp, out });
      return { run, traffic: { reads: [gate, up], writes: [out] } };
    },
  },
  softmaxCausal: {
    elementBytes: 8,
    prepare(device, arena, rows) {
      const x = normal(arena, [rows, ROW_COLUMNS]);
      const out = arena.allocate("f32", [rows, ROW_COLUMNS]);
      const limits = arena.allocate("i32", [1, rows]);
      view(limits).fill(ROW_COLUMNS);
      const run = (): void => softmaxCausal(device, { x, limits, scale: 1, out });
      return { run, traffic: { reads: [x], writes: [out] } };
    },
  },
  castRows: {
    elementBytes: 6,
    prepare(device, arena, rows) {
      const x = normal(arena, [rows, ROW_COLUMNS]);
      const out = arena.allocate("bf16", [rows, ROW_COLUMNS]);
      const run = (): void => castRows(device, { x, out });
      return { run, traffic: { reads: [x], writes: [out] } };
    },
  },
  crossEntropy: {
    elementBytes: 4,
    prepare(device, arena, rows) {
      const logits = normal(arena, [rows, ROW_COLUMNS]);
      const targets = arena.allocateZeros("i32", [1, rows]);
      const loss = arena.allocate("f32", [1, rows]);
      const logSumExp = arena.allocate("f32", [1, rows]);
      const call = { logits, targets, gradScale: 1, zLoss: 0, loss, logSumExp, grad: true };
      const run = (): void => crossEntropy(device, call);
      return { run, traffic: { reads: [logits], writes: [logits] } };
    },
  },
  adamw: {
    elementBytes: 16,
    prepare(device, arena, rows) {
      const [parameter, gradient] = [0, 1].map(() => normal(arena, [rows, ROW_COLUMNS])) as [
        Tensor<"f32">,
        Tensor<"f32">,
      ];
      const moments = [0, 1].map(() => arena.allocateZeros("f32", [rows, ROW_COLUMNS]));
      const span = (tensor: Tensor<"f32">) => reshape(tensor, [1, rows * ROW_COLUMNS]);
      const [firstMoment, secondMoment] = moments.map(span) as [Tensor<"f32">, Tensor<"f32">];
      const call = {
        ...{ parameter: span(parameter), gradient: span(gradient), firstMoment, secondMoment },
        ...{ learningRate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 },
        ...{ step: 10, gradientScale: 1 },
      };
      const changed = [parameter, ...moments];
      const traffic = { reads: [...changed, gradient], writes: changed };
      return { run: () => adamw(device, call), traffic };
    },
  },
};

const TARGETS = ["x64", "wasm"] as const;

export const ROW_CASES: readonly KernelCase[] = Object.entries(CASES).flatMap(
  ([name, { elementBytes, prepare }]) =>
    TARGETS.map(
      (kernels): KernelCase => ({
        name,
        shape: ROWS_SHAPE,
        kernels,
        numThreads: 1,
        bound: "memory",
        prepare(device, arena) {
          const { rows, shape } = chooseRows(elementBytes * ROW_COLUMNS);
          return { ...prepare(device, arena, rows), shape };
        },
      }),
    ),
);
