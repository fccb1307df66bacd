/**
 * @file Conformance cases of matrix products: ragged, strided, batched, grouped, empty, with NaN
 * and infinity.
 */
import { toleranceFor } from "../../numerics/tolerance.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { groupedMatmul } from "../grouped-matmul/contract.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { TRANSPOSITIONS } from "../matmul/block-multiplier.ts";
import { matmul } from "../matmul/contract.ts";
import type { ConformanceCase } from "./conformance.ts";
import type { TensorMaker } from "./tensor-maker.ts";

type Shape = readonly [m: number, n: number, k: number];

/** One element; below, at and above every tile edge in use; long depths; flat and tall. */
const SHAPES: readonly Shape[] = [
  [1, 1, 1],
  [1, 100, 33],
  [3, 17, 2],
  [12, 32, 16],
  [13, 33, 17],
  [49, 65, 31],
  [64, 64, 64],
  [100, 7, 129],
  [5, 200, 300],
  [130, 70, 5],
  [37, 53, 600],
];
const EMPTY_SHAPES: readonly Shape[] = [
  [4, 5, 0],
  [0, 5, 3],
  [4, 0, 3],
];
const DTYPES = ["f32", "bf16"] as const;

function stored(transposition: Transposition, [m, n, k]: Shape): { a: number[]; b: number[] } {
  return {
    a: transposition === "tn" ? [k, m] : [m, k],
    b: transposition === "nt" ? [n, k] : [k, n],
  };
}

function productCase(
  transposition: Transposition,
  dtype: (typeof DTYPES)[number],
  shape: Shape,
  accumulate: boolean,
): ConformanceCase {
  const [m, n, k] = shape;
  const { a: aShape, b: bShape } = stored(transposition, shape);
  return {
    kernel: `matmul/${transposition}.${dtype}`,
    title: `${m}×${n}×${k}${accumulate ? ", accumulating" : ""}`,
    tolerance: toleranceFor("matmul", dtype, k),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const a = make.normal(dtype, aShape);
      const b = make.normal(dtype, bShape);
      const out = accumulate ? make.normal("f32", [m, n]) : make.poisoned("f32", [m, n]);
      return {
        run: (device) => matmul(device, { transposition, a, b, out, accumulate }),
        outputs: { out },
      };
    },
  };
}

function specialValuesCase(
  transposition: Transposition,
  dtype: (typeof DTYPES)[number],
): ConformanceCase {
  const shape: Shape = [20, 40, 50];
  const { a: aShape, b: bShape } = stored(transposition, shape);
  return {
    kernel: `matmul/${transposition}.${dtype}`,
    title: "NaN and infinity stay in their rows and columns",
    tolerance: toleranceFor("matmul", dtype, shape[2]),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const spoiled = (dimensions: readonly number[]): Tensor<"f32" | "bf16"> => {
        const [row, column] = [
          make.random.below(dimensions[0]!),
          make.random.below(dimensions[1]!),
        ];
        const value = make.random.below(2) === 0 ? Number.NaN : Number.POSITIVE_INFINITY;
        return make.filled(dtype, dimensions, (r, c) =>
          r === row && c === column ? value : make.random.normal(),
        );
      };
      const a = spoiled(aShape);
      const b = make.normal(dtype, bShape);
      const out = make.poisoned("f32", [shape[0], shape[1]]);
      return { run: (device) => matmul(device, { transposition, a, b, out }), outputs: { out } };
    },
  };
}

function batchCase(transposition: Transposition): ConformanceCase {
  const [count, m, n, k] = [3, 9, 20, 24];
  const { a: aShape, b: bShape } = stored(transposition, [m, n, k]);
  return {
    kernel: `matmul/${transposition}.f32`,
    title: "a batch over heads that stand side by side in one row",
    tolerance: toleranceFor("matmul", "f32", k),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const wide = (dimensions: readonly number[]): [Tensor<"f32">, Tensor<"f32">] => {
        const all = make.normal("f32", [dimensions[0]!, dimensions[1]! * count]);
        const first = { ...all, columns: dimensions[1]!, shape: dimensions };
        return [all, first];
      };
      const [, a] = wide(aShape);
      const [, b] = wide(bShape);
      const out = make.poisoned("f32", [m, n * count]);
      const batch = { count, aStride: aShape[1]!, bStride: bShape[1]!, outStride: n };
      const firstOut = { ...out, columns: n, shape: [m, n] };
      return {
        run: (device) => matmul(device, { transposition, a, b, out: firstOut, batch }),
        outputs: { out },
      };
    },
  };
}

/** Offsets of groups with these row counts. */
export function offsetsOf(make: TensorMaker, sizes: readonly number[]): Tensor<"i32"> {
  const offsets = [0];
  for (const rows of sizes) offsets.push(offsets[offsets.length - 1]! + rows);
  return make.filled("i32", [1, offsets.length], (_, column) => offsets[column]!, {
    contiguous: true,
  });
}

function groupedCase(
  transposition: Transposition,
  dtype: (typeof DTYPES)[number],
  sizes: readonly number[],
  accumulate: boolean,
): ConformanceCase {
  const [n, k] = [37, 50];
  const rows = sizes.reduce((sum, size) => sum + size, 0);
  const depth = transposition === "tn" ? Math.max(...sizes) : k;
  return {
    kernel: `groupedMatmul/${transposition}.${dtype}`,
    title: `groups of ${sizes.join(", ")} rows${accumulate ? ", accumulating" : ""}`,
    tolerance: toleranceFor("matmul", dtype, depth),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const offsets = offsetsOf(make, sizes);
      const groups = sizes.length;
      const a = make.normal(dtype, [rows, k]);
      const bRows = { nt: groups * n, nn: groups * k, tn: rows }[transposition];
      const b = make.normal(dtype, [bRows, transposition === "nt" ? k : n]);
      const outShape = transposition === "tn" ? [groups * k, n] : [rows, n];
      const out = accumulate ? make.normal("f32", outShape) : make.poisoned("f32", outShape);
      return {
        run: (device) => groupedMatmul(device, { transposition, a, b, out, offsets, accumulate }),
        outputs: { out },
      };
    },
  };
}

const GROUPINGS: readonly (readonly number[])[] = [[5], [0, 3, 0, 70, 1], [64, 64, 33], [0, 0]];

export const MATMUL_CASES: readonly ConformanceCase[] = TRANSPOSITIONS.flatMap((transposition) => [
  ...DTYPES.flatMap((dtype) => [
    ...SHAPES.map((shape) => productCase(transposition, dtype, shape, false)),
    ...[...SHAPES.slice(4, 8), EMPTY_SHAPES[0]!].map((shape) =>
      productCase(transposition, dtype, shape, true),
    ),
    ...EMPTY_SHAPES.map((shape) => productCase(transposition, dtype, shape, false)),
    specialValuesCase(transposition, dtype),
    ...GROUPINGS.map((sizes) => groupedCase(transposition, dtype, sizes, false)),
    groupedCase(transposition, dtype, [20, 0, 41], true),
  ]),
  batchCase(transposition),
]);
