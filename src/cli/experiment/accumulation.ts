/**
 * @file `hadal experiment accumulation`: how the error of an FP8 product grows with its depth in
 * the tensor core's accumulator, and what promotion makes of it.
 *
 * Two kinds of data: normal values, whose sums cancel, and positive ones, whose sums grow. The
 * error is that of the accumulation alone: against the exact sum of the same codes. One scale a
 * row, so that pieces may be as deep as the product.
 */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { quantizeTiles } from "../../kernels/quantize-tiles/contract.ts";
import { type SumRule, scaledMatmul } from "../../kernels/scaled-matmul/contract.ts";
import { ACTIVATION_AMAX_MIN } from "../../numerics/scales.ts";
import { Arena } from "../../tensor/arena.ts";
import { allocateScaled, type ScaledTensor } from "../../tensor/scaled-tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { drawLineChart } from "./line-chart.ts";

export const DEPTHS: readonly number[] = [256, 512, 1024, 2048, 4096, 8192, 16384];
export const INTERVALS: readonly number[] = [128, 512, Infinity];
/** Rows and columns of each product. */
const SIDE = 24;

export const DATA_KINDS = ["normal", "positive"] as const;
export type DataKind = (typeof DATA_KINDS)[number];

export interface AccumulationError {
  readonly data: DataKind;
  readonly depth: number;
  readonly interval: number;
  /** ‖out − exact‖ ÷ ‖exact‖ */
  readonly relative: number;
  /** max |out − exact| ÷ |exact|; of positive data, whose sums are never near zero. */
  readonly largest: number;
}

/** Every depth, kind of data and interval; on the reference kernels, which have the bit model. */
export async function measureAccumulation(seed: number): Promise<readonly AccumulationError[]> {
  await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  const arena = new Arena(device.memory, "accumulation");
  return DATA_KINDS.flatMap((data) =>
    DEPTHS.flatMap((depth) => {
      using _mark = arena.mark();
      const random = new Random(seed, `${data} ${depth}`);
      const [a, b] = [0, 1].map(() => codes(device, arena, { data, depth, random }));
      const product = (rule: SumRule): Float32Array => {
        const out = arena.allocate("f32", [SIDE, SIDE]);
        scaledMatmul(device, { transposition: "nt", a: a!, b: b!, out, ...rule });
        return Float32Array.from(view(out));
      };
      const exact = product({ accumulation: "f32", promotionInterval: Infinity });
      return INTERVALS.map((interval) => {
        const actual = product({ accumulation: "tensorCore", promotionInterval: interval });
        return { data, depth, interval, ...errorsOf(actual, exact) };
      });
    }),
  );
}

function codes(
  device: Device,
  arena: Arena,
  source: { readonly data: DataKind; readonly depth: number; readonly random: Random },
): ScaledTensor {
  const { data, depth, random } = source;
  const x = arena.allocate("f32", [SIDE, depth]);
  const draw = (): number => (data === "normal" ? random.normal() : random.uniform());
  fillFrom(x, Float32Array.from({ length: SIDE * depth }, draw));
  const shape = { format: "e4m3", rows: SIDE, columns: depth } as const;
  const out = allocateScaled(arena, { ...shape, tileRows: 1, tileColumns: depth });
  quantizeTiles(device, { x, out, amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: false });
  return out;
}

function errorsOf(
  actual: Float32Array,
  exact: Float32Array,
): { readonly relative: number; readonly largest: number } {
  let [gap, squares, largest] = [0, 0, 0];
  for (const [index, value] of exact.entries()) {
    const distance = actual[index]! - value;
    gap += distance * distance;
    squares += value * value;
    largest = Math.max(largest, Math.abs(distance / value));
  }
  return { relative: Math.sqrt(gap / squares), largest };
}

/** "every 128", or "never". */
export function intervalName(interval: number): string {
  return interval === Infinity ? "never" : `every ${interval}`;
}

/** Relative error over depth, one line for each kind of data and interval. */
export function drawAccumulation(errors: readonly AccumulationError[]): string {
  return drawLineChart({
    title: "FP8 products in the tensor core's accumulator",
    xLabel: "depth K",
    yLabel: "relative error (Frobenius)",
    isLogarithmic: true,
    series: DATA_KINDS.flatMap((data) =>
      INTERVALS.map((interval) => ({
        name: `${data}, ${intervalName(interval)}`,
        points: errors
          .filter((error) => error.data === data && error.interval === interval)
          .map(({ depth, relative }) => [depth, relative] as const),
      })),
    ),
  });
}
