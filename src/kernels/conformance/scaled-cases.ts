/**
 * @file Conformance cases of tiles and of products of scaled operands: ragged, strided, grouped,
 * empty, with every tile shape that a recipe can ask for, with NaN and infinity.
 *
 * Quantisation is compared bit by bit; products within the tolerance table.
 */
import { toleranceFor } from "../../numerics/tolerance.ts";
import {
  CODE_DTYPE,
  codeColumns,
  makeScaled,
  SCALED_FORMATS,
  type ScaledFormat,
  type ScaledShape,
  type ScaledTensor,
  scaleColumnsOf,
  scaleRowsOf,
} from "../../tensor/scaled-tensor.ts";
import { makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { type GATHER_BYTES_VARIANTS, GATHER_WORD_BYTES, gatherBytes } from "../gather/contract.ts";
import { groupedScaledMatmul } from "../grouped-scaled-matmul/contract.ts";
import { TRANSPOSITIONS, type Transposition } from "../matmul/block-multiplier.ts";
import {
  dequantizeTiles,
  type OpenDType,
  QUANTIZE_TILES_VARIANTS,
  quantizeTiles,
  RETILE_VARIANTS,
  retile,
} from "../quantize-tiles/contract.ts";
import { PRODUCT_FORMATS, type ProductFormat, scaledMatmul } from "../scaled-matmul/contract.ts";
import type { ConformanceCase, PreparedCase } from "./conformance.ts";
import { offsetsOf } from "./matmul-cases.ts";
import type { TensorMaker } from "./tensor-maker.ts";

const EXACT = toleranceFor("storage", "f32");

/** Tiles by name: rows and columns, "all" for the whole side. */
const TILES = {
  "1×128": [1, 128],
  "128×1": [128, 1],
  "128×128": [128, 128],
  // No recipe has it: tiles begin within a byte of packed codes.
  "3×7": [3, 7],
  "a row": [1, Infinity],
  "the tensor": [Infinity, Infinity],
} as const;
type TileName = keyof typeof TILES;

function shapeOf<F extends ScaledFormat>(
  format: F,
  [rows, columns]: readonly [number, number],
  tile: TileName,
  groups?: ScaledShape["groups"],
): ScaledShape<F> {
  const [tileRows, tileColumns] = TILES[tile];
  return {
    format,
    rows,
    columns,
    tileRows: Math.min(tileRows, Math.max(1, rows)),
    tileColumns: Math.min(tileColumns, Math.max(1, columns)),
    ...(groups === undefined ? {} : { groups }),
  };
}

/** Codes and scales of NaN: what belongs to no group must stay so, to the byte. */
function poisonedScaled<F extends ScaledFormat>(
  make: TensorMaker,
  shape: ScaledShape<F>,
): ScaledTensor<F> {
  const { format, rows, columns } = shape;
  return makeScaled(shape, {
    codes: make.filled(CODE_DTYPE[format], [rows, codeColumns(format, columns)], () =>
      format === "e5m6" ? 0x7f : Number.NaN,
    ),
    scales: make.poisoned("f32", [scaleRowsOf(shape), scaleColumnsOf(shape)]),
  });
}

/** Random codes of every magnitude that are finite, and scales of either kind. */
function randomScaled<F extends ScaledFormat>(
  make: TensorMaker,
  shape: ScaledShape<F>,
): ScaledTensor<F> {
  const { format, rows, columns } = shape;
  const spread = format === "e4m3" ? 40 : 1000;
  const code = (): number =>
    CODE_DTYPE[format] === "u8" ? make.random.below(256) & 0x7b : spread * make.random.normal();
  const scale = (): number =>
    make.random.below(2) === 0 ? 2 ** (make.random.below(8) - 12) : 1e-3 * make.random.uniform();
  return makeScaled(shape, {
    codes: make.filled(CODE_DTYPE[format], [rows, codeColumns(format, columns)], code),
    scales: make.filled("f32", [scaleRowsOf(shape), scaleColumnsOf(shape)], scale),
  });
}

/** The codes as bytes, so that they are compared bit by bit. */
function bytesOf({ codes }: ScaledTensor): Tensor<"u8"> {
  return makeTensor(codes.memory, "u8", codes.shape, codes.byteOffset, codes.rowStride);
}

/** Values of many magnitudes, some zero, and what no scale can hold. */
function awkward(make: TensorMaker, isSpecial: boolean): () => number {
  return () => {
    const kind = make.random.below(isSpecial ? 40 : 32);
    if (kind === 0) return 0;
    if (kind === 1) return make.random.normal() * 2 ** (make.random.below(60) - 40);
    if (kind === 32) return Number.NaN;
    if (kind === 33) return make.random.below(8) === 0 ? Number.NEGATIVE_INFINITY : -0;
    return make.random.normal();
  };
}

interface TileCase {
  readonly shape: readonly [rows: number, columns: number];
  readonly tile: TileName;
  readonly powerOfTwo: boolean;
  readonly isSpecial?: boolean;
  /** Rows of the groups, by offsets, or of one of several equal groups. */
  readonly groups?: readonly number[] | number;
}

const TILE_CASES: readonly TileCase[] = [
  { shape: [1, 1], tile: "1×128", powerOfTwo: false },
  { shape: [7, 128], tile: "1×128", powerOfTwo: true },
  { shape: [67, 389], tile: "1×128", powerOfTwo: false },
  { shape: [5, 200], tile: "1×128", powerOfTwo: true, isSpecial: true },
  { shape: [40, 320], tile: "1×128", powerOfTwo: true },
  { shape: [300, 37], tile: "128×1", powerOfTwo: true },
  { shape: [130, 150], tile: "128×1", powerOfTwo: false, isSpecial: true },
  { shape: [140, 205], tile: "128×1", powerOfTwo: false },
  { shape: [129, 128], tile: "128×1", powerOfTwo: true },
  { shape: [290, 21], tile: "128×1", powerOfTwo: true, groups: [100, 0, 130, 1, 56] },
  { shape: [259, 257], tile: "128×128", powerOfTwo: false },
  { shape: [420, 130], tile: "128×128", powerOfTwo: true, groups: 140, isSpecial: true },
  { shape: [20, 45], tile: "3×7", powerOfTwo: false },
  { shape: [33, 77], tile: "a row", powerOfTwo: false },
  { shape: [33, 77], tile: "the tensor", powerOfTwo: true },
  { shape: [0, 12], tile: "1×128", powerOfTwo: false },
  { shape: [12, 0], tile: "128×1", powerOfTwo: false },
];

/** One scale a tile of a row, one for all, and one for several rows. */
const RETILE_SOURCES = ["1×128", "the tensor", "128×128"] as const;

function groupsOf(make: TensorMaker, { groups }: TileCase): ScaledShape["groups"] {
  if (groups === undefined) return undefined;
  if (typeof groups === "number") return { kind: "equal", rows: groups };
  return { kind: "offsets", offsets: offsetsOf(make, groups) };
}

function describeTiles({ shape, tile, powerOfTwo, isSpecial, groups }: TileCase): string {
  const grouped = groups === undefined ? "" : `, groups of ${groups} rows`;
  const scales = powerOfTwo ? ", power-of-two scales" : "";
  const values = isSpecial ? ", special values" : "";
  return `${shape.join("×")}, tiles ${tile}${grouped}${scales}${values}`;
}

function quantizeCase(variant: string, tiles: TileCase): ConformanceCase {
  const [from, to] = variant.split(".") as [OpenDType, ScaledFormat];
  return {
    kernel: `quantizeTiles/${variant}`,
    title: describeTiles(tiles),
    tolerance: EXACT,
    prepare(make): PreparedCase {
      const { powerOfTwo, isSpecial = false } = tiles;
      const x = make.filled(from, tiles.shape, awkward(make, isSpecial));
      const out = poisonedScaled(make, shapeOf(to, tiles.shape, tiles.tile, groupsOf(make, tiles)));
      const outputs = { codes: bytesOf(out), scales: out.scales };
      const amaxMin = 1e-4;
      return { run: (device) => quantizeTiles(device, { x, out, amaxMin, powerOfTwo }), outputs };
    },
  };
}

function dequantizeCase(format: ScaledFormat, to: OpenDType, tiles: TileCase): ConformanceCase {
  return {
    kernel: `dequantizeTiles/${format}.${to}`,
    title: describeTiles(tiles),
    tolerance: EXACT,
    prepare(make): PreparedCase {
      const x = randomScaled(make, shapeOf(format, tiles.shape, tiles.tile, groupsOf(make, tiles)));
      const out = make.poisoned(to, tiles.shape);
      return { run: (device) => dequantizeTiles(device, { x, out }), outputs: { out } };
    },
  };
}

/** Tiles of a source into those of the case. */
function retileCase(variant: string, tiles: TileCase, source: TileName): ConformanceCase {
  const [from, to] = variant.split(".") as [ScaledFormat, ProductFormat];
  return {
    kernel: `retile/${variant}`,
    title: `from ${source}, ${describeTiles(tiles)}`,
    tolerance: EXACT,
    prepare(make): PreparedCase {
      const { powerOfTwo } = tiles;
      const x = randomScaled(make, shapeOf(from, tiles.shape, source));
      const out = poisonedScaled(make, shapeOf(to, tiles.shape, tiles.tile, groupsOf(make, tiles)));
      const outputs = { codes: bytesOf(out), scales: out.scales };
      const amaxMin = 1e-4;
      return { run: (device) => retile(device, { x, out, amaxMin, powerOfTwo }), outputs };
    },
  };
}

type ProductShape = readonly [m: number, n: number, k: number];

/** Around tiles of cores, around tiles of scales, deep, flat and empty. */
const SHAPES: readonly ProductShape[] = [
  [1, 1, 1],
  [1, 100, 160],
  [13, 33, 17],
  [49, 65, 128],
  [64, 64, 256],
  [130, 140, 129],
  [37, 53, 600],
  [4, 5, 0],
  [0, 5, 3],
];

/** Tiles of a and b: those of the recipe, and others that experiments ask for. */
const OPERAND_TILES: Readonly<Record<Transposition, readonly (readonly [TileName, TileName])[]>> = {
  nt: [
    ["1×128", "128×128"],
    ["a row", "a row"],
    ["128×128", "1×128"],
    ["the tensor", "the tensor"],
  ],
  nn: [
    ["1×128", "128×128"],
    ["the tensor", "128×1"],
  ],
  tn: [
    ["128×1", "128×1"],
    ["128×128", "the tensor"],
  ],
};

function storedShapes(
  transposition: Transposition,
  [m, n, k]: ProductShape,
): { a: [number, number]; b: [number, number] } {
  return {
    a: transposition === "tn" ? [k, m] : [m, k],
    b: transposition === "nt" ? [n, k] : [k, n],
  };
}

interface ProductCase {
  readonly transposition: Transposition;
  readonly formats: readonly [ProductFormat, ProductFormat];
  readonly tiles: readonly [TileName, TileName];
  readonly shape: ProductShape;
  readonly accumulate?: boolean;
  readonly promotionInterval?: number;
  readonly isTensorCore?: boolean;
}

function productCase(product: ProductCase): ConformanceCase {
  const { transposition, formats, tiles, shape, accumulate = false } = product;
  const { promotionInterval = 128, isTensorCore = false } = product;
  const accumulation = isTensorCore ? "tensorCore" : "f32";
  const every = promotionInterval === 128 ? "" : `, promoted every ${promotionInterval}`;
  return {
    kernel: `scaledMatmul/${transposition}.${isTensorCore ? accumulation : formats.join(".")}`,
    title: `${shape.join("×")}, tiles ${tiles.join(" by ")}${every}${accumulate ? ", adding" : ""}`,
    tolerance: toleranceFor("matmul", "fp8_e4m3", shape[2]),
    prepare(make): PreparedCase {
      const stored = storedShapes(transposition, shape);
      const a = randomScaled(make, shapeOf(formats[0], stored.a, tiles[0]));
      const b = randomScaled(make, shapeOf(formats[1], stored.b, tiles[1]));
      const outShape = [shape[0], shape[1]];
      const out = accumulate ? make.normal("f32", outShape) : make.poisoned("f32", outShape);
      const call = {
        transposition,
        a,
        b,
        out,
        accumulate,
        promotionInterval,
        accumulation,
      } as const;
      return { run: (device) => scaledMatmul(device, call), outputs: { out } };
    },
  };
}

/** A NaN code, and an infinite scale: they stay in their rows and columns. */
function specialProductCase(transposition: Transposition): ConformanceCase {
  const shape: ProductShape = [20, 40, 300];
  return {
    kernel: `scaledMatmul/${transposition}.e4m3.e4m3`,
    title: "NaN codes and infinite scales stay in their rows and columns",
    tolerance: toleranceFor("matmul", "fp8_e4m3", shape[2]),
    prepare(make): PreparedCase {
      const stored = storedShapes(transposition, shape);
      const [tileA, tileB] = OPERAND_TILES[transposition][0]!;
      const a = randomScaled(make, shapeOf("e4m3", stored.a, tileA));
      const b = randomScaled(make, shapeOf("e4m3", stored.b, tileB));
      const { memory } = a.codes;
      memory.u8[a.codes.byteOffset + 7 * a.codes.rowStride + 5] = 0xff;
      memory.f32[a.scales.byteOffset / 4 + a.scales.columns - 1] = Number.POSITIVE_INFINITY;
      const out = make.poisoned("f32", [shape[0], shape[1]]);
      const call = { transposition, a, b, out } as const;
      return { run: (device) => scaledMatmul(device, call), outputs: { out } };
    },
  };
}

interface GroupedCase {
  readonly transposition: Transposition;
  readonly formats: readonly [ProductFormat, ProductFormat];
  readonly sizes: readonly number[];
  /** Columns of the output, and depth (nt, nn) or rows (tn). */
  readonly width: readonly [n: number, k: number];
  readonly accumulate?: boolean;
  readonly isTensorCore?: boolean;
  /** Tiles of the whole tensor instead of the recipe's. */
  readonly isPerTensor?: boolean;
}

function groupedCase(grouped: GroupedCase): ConformanceCase {
  const { transposition, formats, sizes, accumulate = false, isPerTensor = false } = grouped;
  const accumulation = grouped.isTensorCore === true ? "tensorCore" : "f32";
  const variant = accumulation === "tensorCore" ? accumulation : formats.join(".");
  const depth = transposition === "tn" ? Math.max(...sizes) : grouped.width[1];
  const tiles = isPerTensor ? ", one scale a tensor" : "";
  const adds = accumulate ? ", adding" : "";
  return {
    kernel: `groupedScaledMatmul/${transposition}.${variant}`,
    title: `${grouped.width.join("×")}, groups of ${sizes} rows${tiles}${adds}`,
    tolerance: toleranceFor("matmul", "fp8_e4m3", depth),
    prepare(make): PreparedCase {
      const offsets = offsetsOf(make, sizes);
      const { a, b, outShape } = groupedOperands(make, grouped, offsets);
      const out = accumulate ? make.normal("f32", outShape) : make.poisoned("f32", outShape);
      const call = { transposition, a, b, out, offsets, accumulate, accumulation } as const;
      return { run: (device) => groupedScaledMatmul(device, call), outputs: { out } };
    },
  };
}

function groupedOperands(
  make: TensorMaker,
  { transposition, formats, sizes, width: [n, k], isPerTensor = false }: GroupedCase,
  offsets: Tensor<"i32">,
): { a: ScaledTensor; b: ScaledTensor; outShape: number[] } {
  // A row behind the last group, that nothing belongs to.
  const rows = sizes.reduce((sum, size) => sum + size, 0) + 1;
  if (transposition === "tn") {
    const operand = (format: ProductFormat, columns: number): ScaledTensor =>
      isPerTensor
        ? randomScaled(make, shapeOf(format, [rows, columns], "the tensor"))
        : randomScaled(make, {
            ...{ format, rows, columns, tileRows: 128, tileColumns: 1 },
            groups: { kind: "offsets", offsets },
          });
    return {
      a: operand(formats[0], k),
      b: operand(formats[1], n),
      outShape: [sizes.length * k, n],
    };
  }
  const [bRows, bColumns] = transposition === "nt" ? [n, k] : [k, n];
  return {
    a: randomScaled(make, shapeOf(formats[0], [rows, k], isPerTensor ? "the tensor" : "1×128")),
    b: randomScaled(make, {
      ...{ format: formats[1], rows: sizes.length * bRows, columns: bColumns },
      ...{ tileRows: isPerTensor ? bRows : 128, tileColumns: isPerTensor ? bColumns : 128 },
      groups: { kind: "equal", rows: bRows },
    }),
    outShape: [rows, n],
  };
}

const RECIPE_FORMATS = ["e4m3", "e4m3"] as const;
const HYBRID_FORMATS = ["e5m2", "e4m3"] as const;

const PRODUCT_CASES = TRANSPOSITIONS.flatMap((transposition): ConformanceCase[] => {
  const tiles = OPERAND_TILES[transposition][0]!;
  const base = { transposition, formats: RECIPE_FORMATS, tiles };
  return [
    ...SHAPES.map((shape) => productCase({ ...base, shape })),
    ...SHAPES.slice(3, 8).map((shape) => productCase({ ...base, shape, accumulate: true })),
    ...OPERAND_TILES[transposition]
      .slice(1)
      .map((other) => productCase({ ...base, tiles: other, shape: [150, 70, 300] })),
    ...[32, 64].map((promotionInterval) =>
      productCase({ ...base, shape: [20, 30, 200], promotionInterval }),
    ),
    productCase({
      ...base,
      tiles: ["the tensor", "the tensor"],
      shape: [20, 30, 700],
      promotionInterval: Infinity,
    }),
    productCase({
      ...base,
      tiles: ["the tensor", "the tensor"],
      shape: [20, 30, 700],
      promotionInterval: 256,
    }),
    ...PRODUCT_FORMATS.flatMap((a) =>
      PRODUCT_FORMATS.map((b) => productCase({ ...base, formats: [a, b], shape: [40, 70, 280] })),
    ),
    productCase({ ...base, shape: [9, 12, 290], isTensorCore: true }),
    specialProductCase(transposition),
  ];
});

const GROUPED_CASES = TRANSPOSITIONS.flatMap((transposition): ConformanceCase[] => {
  const base = { transposition, formats: RECIPE_FORMATS };
  return [
    groupedCase({ ...base, sizes: [5], width: [37, 50] }),
    groupedCase({ ...base, sizes: [0, 3, 0, 170, 1], width: [150, 200] }),
    groupedCase({ ...base, sizes: [128, 128, 33], width: [64, 129] }),
    groupedCase({ ...base, sizes: [0, 0], width: [9, 70] }),
    groupedCase({ ...base, sizes: [20, 0, 141], width: [40, 300], accumulate: true }),
    groupedCase({ ...base, sizes: [20, 0, 141], width: [40, 60], isPerTensor: true }),
    ...PRODUCT_FORMATS.map((a) =>
      groupedCase({ ...base, formats: [a, "e5m2"], sizes: [30, 140], width: [30, 140] }),
    ),
    groupedCase({ ...base, formats: HYBRID_FORMATS, sizes: [30, 140], width: [30, 140] }),
    groupedCase({ ...base, sizes: [3, 140], width: [9, 70], isTensorCore: true }),
  ];
});

/** Rows of bytes, some of them words: whole ones at places of words. */
const GATHER_BYTES: readonly ConformanceCase[] = [
  ...[131, 17, 1].map((columns) => gatherBytesCase("u8", columns)),
  ...[256, 100, 4].map((columns) => gatherBytesCase("words", columns)),
];

function gatherBytesCase(
  variant: (typeof GATHER_BYTES_VARIANTS)[number],
  columns: number,
): ConformanceCase {
  return {
    kernel: `gatherBytes/${variant}`,
    title: `rows of ${columns} bytes, some twice`,
    tolerance: EXACT,
    prepare(make): PreparedCase {
      const bytes = (rows: number): Tensor<"u8"> => {
        if (variant === "u8")
          return make.filled("u8", [rows, columns], () => make.random.below(256));
        const shape = [rows, columns / GATHER_WORD_BYTES];
        const words = make.filled("i32", shape, () => make.random.uint32() | 0);
        const { memory, byteOffset, rowStride } = words;
        return makeTensor(memory, "u8", [rows, columns], byteOffset, rowStride * GATHER_WORD_BYTES);
      };
      const src = bytes(9);
      const index = make.integers([1, 40], 0, 9);
      const out = bytes(40);
      return { run: (device) => gatherBytes(device, { src, index, out }), outputs: { out } };
    },
  };
}

export const SCALED_CASES: readonly ConformanceCase[] = [
  ...QUANTIZE_TILES_VARIANTS.flatMap((variant) =>
    TILE_CASES.map((tiles) => quantizeCase(variant, tiles)),
  ),
  ...SCALED_FORMATS.flatMap((format) =>
    (["f32", "bf16"] as const).flatMap((to) =>
      TILE_CASES.map((tiles) => dequantizeCase(format, to, tiles)),
    ),
  ),
  ...RETILE_VARIANTS.flatMap((variant) =>
    RETILE_SOURCES.flatMap((source) =>
      TILE_CASES.map((tiles) => retileCase(variant, tiles, source)),
    ),
  ),
  ...PRODUCT_CASES,
  ...GROUPED_CASES,
  ...GATHER_BYTES,
];
