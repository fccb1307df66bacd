/**
 * @file What `hadal bench kernels` measures of FP8: products of scaled operands in turns with those
 * of bf16, expert products in turns with dense ones, and quantisation by tiles.
 */
import { floorDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { groupedScaledMatmul } from "../../kernels/grouped-scaled-matmul/contract.ts";
import type { Transposition } from "../../kernels/matmul/block-multiplier.ts";
import { matmul } from "../../kernels/matmul/contract.ts";
import { dequantizeTiles, quantizeTiles, retile } from "../../kernels/quantize-tiles/contract.ts";
import { scaledMatmul } from "../../kernels/scaled-matmul/contract.ts";
import { ACTIVATION_AMAX_MIN, SCALE_BLOCK } from "../../numerics/scales.ts";
import type { Arena } from "../../tensor/arena.ts";
import { allocateScaled, type RowGroups, type ScaledTensor } from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import {
  chooseRows,
  fillWith,
  type KernelCase,
  normal,
  type Prepared,
  ROW_COLUMNS,
  ROWS_SHAPE,
} from "./kernel-case.ts";

const RULE = { amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: true } as const;

type TileShape = readonly [tileRows: number, tileColumns: number];
const ALONG: TileShape = [1, SCALE_BLOCK];
const ACROSS: TileShape = [SCALE_BLOCK, 1];
const BLOCK: TileShape = [SCALE_BLOCK, SCALE_BLOCK];

function allocate(
  arena: Arena,
  x: Pick<Tensor, "rows" | "columns">,
  [tileRows, tileColumns]: TileShape,
  groups?: RowGroups,
): ScaledTensor<"e4m3"> {
  const shape = {
    format: "e4m3",
    rows: x.rows,
    columns: x.columns,
    tileRows,
    tileColumns,
  } as const;
  return allocateScaled(arena, groups === undefined ? shape : { ...shape, groups });
}

function quantized(
  device: Device,
  arena: Arena,
  x: Tensor<"f32">,
  tiles: TileShape,
  groups?: RowGroups,
): ScaledTensor<"e4m3"> {
  const out = allocate(arena, x, tiles, groups);
  quantizeTiles(device, { x, out, ...RULE });
  return out;
}

function rounded(device: Device, arena: Arena, x: Tensor<"f32">): Tensor<"bf16"> {
  const out = arena.allocate("bf16", [x.rows, x.columns]);
  castRows(device, { x, out });
  return out;
}

/** The tiles of both operands: along K, and blocks for weights. */
function tilesOf(transposition: Transposition): readonly [a: TileShape, b: TileShape] {
  return transposition === "tn" ? [ACROSS, ACROSS] : [ALONG, BLOCK];
}

function denseCase(transposition: Transposition, size: number, numThreads: number): KernelCase {
  return {
    name: `scaledMatmul ${transposition} e4m3`,
    shape: `${size}×${size}×${size}`,
    kernels: "x64",
    numThreads,
    bound: "bf16",
    prepare(device, arena): Prepared {
      const x = normal(arena, [size, size]);
      const out = arena.allocate("f32", [size, size]);
      const [aTiles, bTiles] = tilesOf(transposition);
      const a = quantized(device, arena, x, aTiles);
      const b = quantized(device, arena, x, bTiles);
      const wide = rounded(device, arena, x);
      return {
        run: () => scaledMatmul(device, { transposition, a, b, out }),
        flops: 2 * size ** 3,
        rival: {
          name: "bf16",
          run: () => matmul(device, { transposition, a: wide, b: wide, out }),
        },
      };
    },
  };
}

/** Sixteen experts, of which none has the rows of another, beside one product as large. */
function groupedCase(transposition: "nt" | "tn"): KernelCase {
  const [numExperts, rows, columns, depth] = [16, 4096, 512, 512];
  const share = (expert: number): number => 1 + (expert % 5);
  const total = Array.from({ length: numExperts }, (_, expert) => share(expert)).reduce(
    (sum, part) => sum + part,
  );
  return {
    name: `groupedScaledMatmul ${transposition} e4m3`,
    shape: `16 experts, ${rows} rows, ${columns}×${depth}`,
    kernels: "x64",
    numThreads: 1,
    bound: "bf16",
    prepare(device, arena): Prepared {
      const offsets = arena.allocate("i32", [1, numExperts + 1]);
      const ends = [0];
      for (let expert = 0, parts = 0; expert < numExperts; expert++) {
        parts += share(expert);
        ends.push(floorDiv(rows * parts, total));
      }
      fillFrom(offsets, Int32Array.from(ends));
      const x = normal(arena, [rows, depth]);
      const byOffsets = { kind: "offsets", offsets } as const;
      if (transposition === "tn") {
        const [a, b] = [ACROSS, ACROSS].map((tiles) =>
          quantized(device, arena, x, tiles, byOffsets),
        ) as [ScaledTensor, ScaledTensor];
        const dense = quantized(device, arena, x, ACROSS);
        const out = arena.allocate("f32", [numExperts * depth, depth]);
        const denseOut = arena.allocate("f32", [depth, depth]);
        const whole = { transposition, a: dense, b: dense, out: denseOut } as const;
        return {
          run: () => groupedScaledMatmul(device, { transposition, a, b, out, offsets }),
          flops: 2 * rows * depth * depth,
          rival: { name: "dense", run: () => scaledMatmul(device, whole) },
        };
      }
      const weights = normal(arena, [numExperts * columns, depth]);
      const a = quantized(device, arena, x, ALONG);
      const equal = { kind: "equal", rows: columns } as const;
      const b = quantized(device, arena, weights, BLOCK, equal);
      const one = quantized(device, arena, normal(arena, [columns, depth]), BLOCK);
      const out = arena.allocate("f32", [rows, columns]);
      return {
        run: () => groupedScaledMatmul(device, { transposition, a, b, out, offsets }),
        flops: 2 * rows * columns * depth,
        rival: {
          name: "dense",
          run: () => scaledMatmul(device, { transposition, a, b: one, out }),
        },
      };
    },
  };
}

interface TileCase {
  /** Bytes of all operands for an element of a row: four of f32, one of a code. */
  readonly elementBytes: number;
  prepare(device: Device, arena: Arena, rows: number): Prepared;
}

function quantizing(tiles: TileShape): TileCase {
  return {
    elementBytes: 5,
    prepare(device, arena, rows) {
      const x = normal(arena, [rows, ROW_COLUMNS]);
      const out = allocate(arena, x, tiles);
      const traffic = { reads: [x], writes: [out.codes] };
      return { run: () => quantizeTiles(device, { x, out, ...RULE }), traffic };
    },
  };
}

/** Those of a few rows, again and again: values of all of them would take more than the codes. */
function codesOf(device: Device, arena: Arena, rows: number): ScaledTensor<"e4m3"> {
  const few = quantized(device, arena, normal(arena, [8, ROW_COLUMNS]), ALONG);
  const out = allocate(arena, { rows, columns: ROW_COLUMNS }, ALONG);
  fillWith(view(out.codes), view(few.codes));
  fillWith(view(out.scales), view(few.scales));
  return out;
}

const TILE_CASES: Readonly<Record<string, TileCase>> = {
  "quantizeTiles 1×128": quantizing(ALONG),
  "quantizeTiles 128×1": quantizing(ACROSS),
  "retile 1×128 to 128×1": {
    elementBytes: 2,
    prepare(device, arena, rows) {
      const from = codesOf(device, arena, rows);
      const out = allocate(arena, from, ACROSS);
      const traffic = { reads: [from.codes], writes: [out.codes] };
      return { run: () => retile(device, { x: from, out, ...RULE }), traffic };
    },
  },
  "dequantizeTiles 1×128": {
    elementBytes: 5,
    prepare(device, arena, rows) {
      const from = codesOf(device, arena, rows);
      const out = arena.allocate("f32", [rows, ROW_COLUMNS]);
      const traffic = { reads: [from.codes], writes: [out] };
      return { run: () => dequantizeTiles(device, { x: from, out }), traffic };
    },
  },
};

export const SCALED_CASES: readonly KernelCase[] = [
  denseCase("nt", 1024, 1),
  denseCase("nn", 1024, 1),
  denseCase("tn", 1024, 1),
  denseCase("nt", 2048, 1),
  denseCase("nt", 1024, 2),
  groupedCase("nt"),
  groupedCase("tn"),
  ...Object.entries(TILE_CASES).map(
    ([name, { elementBytes, prepare }]): KernelCase => ({
      name,
      shape: ROWS_SHAPE,
      kernels: "x64",
      numThreads: 1,
      bound: "memory",
      prepare(device, arena) {
        const { rows, shape } = chooseRows(elementBytes * ROW_COLUMNS);
        return { ...prepare(device, arena, rows), shape };
      },
    }),
  ),
];
