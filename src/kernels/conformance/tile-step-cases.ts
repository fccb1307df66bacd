/**
 * @file Conformance cases of kernels made of others: tiles of one source or of its norm, and the
 * gated activation between codes; ragged and grouped. Norms and activations may differ in their
 * last bits, so a code by one step. That each is to the bit what its parts are, one after the
 * other, is tested beside the kernels.
 */
import { toleranceFor } from "../../numerics/tolerance.ts";
import {
  allocateScaled,
  CODE_DTYPE,
  codeColumns,
  makeScaled,
  type RowGroups,
  type ScaledFormat,
  type ScaledShape,
  type ScaledTensor,
  scaleColumnsOf,
  scaleRowsOf,
} from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { MAKE_TILES_VARIANTS, makeTiles } from "../make-tiles/contract.ts";
import { quantizeTiles } from "../quantize-tiles/contract.ts";
import {
  SWIGLU_TILES_VARIANTS,
  swigluTiles,
  swigluTilesBackward,
} from "../swiglu-tiles/contract.ts";
import type { TilesToMake } from "../tile-slots.ts";
import type { ConformanceCase, PreparedCase } from "./conformance.ts";
import { offsetsOf } from "./matmul-cases.ts";
import type { TensorMaker } from "./tensor-maker.ts";

interface TilesCase {
  readonly rows: number;
  readonly columns: number;
  /** Of what is cached. */
  readonly format: ScaledFormat;
  /** Rows of the groups. */
  readonly groups?: readonly number[];
}

const CASES: readonly TilesCase[] = [
  { rows: 1, columns: 1, format: "e4m3" },
  { rows: 40, columns: 33, format: "e5m2" },
  { rows: 150, columns: 130, format: "e5m6" },
  { rows: 300, columns: 64, format: "e4m3", groups: [100, 0, 129, 1, 70] },
  { rows: 0, columns: 8, format: "e4m3" },
];

const AMAX_MIN = 1e-4;

function tilesToMake(
  make: TensorMaker,
  shape: Omit<ScaledShape, "tileRows" | "tileColumns">,
  isAcross: boolean,
): TilesToMake {
  const [tileRows, tileColumns] = isAcross ? [128, 1] : [1, 128];
  const tiled = { ...shape, tileRows, tileColumns };
  const { format, rows, columns } = shape;
  const codes = make.poisoned(CODE_DTYPE[format], [rows, codeColumns(format, columns)]);
  const scales = make.poisoned("f32", [scaleRowsOf(tiled), scaleColumnsOf(tiled)]);
  return { out: makeScaled(tiled, { codes, scales }), amaxMin: AMAX_MIN, powerOfTwo: isAcross };
}

/** Codes that are compared as values; packed ones are compared by their scales alone. */
function outputsOf(tiles: Readonly<Record<string, TilesToMake>>): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tiles).flatMap(([name, { out }]): [string, Tensor][] => [
      [`${name} scales`, out.scales],
      ...(out.format === "e5m6" ? [] : [[`${name} codes`, out.codes] as [string, Tensor]]),
    ]),
  );
}

function forwardCase(isWeighted: boolean, of: TilesCase): ConformanceCase {
  const { rows, columns, format } = of;
  return {
    kernel: `swigluTiles/${SWIGLU_TILES_VARIANTS[isWeighted ? 1 : 0]}`,
    title: `${rows}×${columns}, cached as ${format}`,
    tolerance: toleranceFor("elementwise", "fp8_e4m3"),
    prepare(make): PreparedCase {
      const gateUp = make.normal("f32", [rows, 2 * columns]);
      const weight = isWeighted ? make.normal("f32", [rows, 1]) : undefined;
      const kept = tilesToMake(make, { format, rows, columns: 2 * columns }, false);
      const out = tilesToMake(make, { format: "e4m3", rows, columns }, false);
      return {
        run: (device) => swigluTiles(device, { gateUp, weight, kept, out }),
        outputs: outputsOf({ kept, out }),
      };
    },
  };
}

/** What forward caches, of random values: finite codes on every device. */
function cached(make: TensorMaker, { rows, columns, format }: TilesCase): ScaledTensor {
  const x = make.normal("f32", [rows, 2 * columns]);
  const shape = { format, rows, columns: 2 * columns, tileRows: 1, tileColumns: 128 };
  const out = allocateScaled(make.arena, shape);
  quantizeTiles(make.device, { x, out, amaxMin: AMAX_MIN, powerOfTwo: false });
  return out;
}

function backwardCase(isWeighted: boolean, of: TilesCase): ConformanceCase {
  const { rows, columns, groups } = of;
  const grouped = groups === undefined ? "" : `, groups of ${groups} rows`;
  return {
    kernel: `swigluTilesBackward/${SWIGLU_TILES_VARIANTS[isWeighted ? 1 : 0]}`,
    title: `${rows}×${columns}, cached as ${of.format}${grouped}`,
    tolerance: toleranceFor("elementwise", "fp8_e4m3"),
    prepare(make): PreparedCase {
      const gateUp = cached(make, of);
      const weights = isWeighted
        ? { weight: make.normal("f32", [rows, 1]), dWeight: make.poisoned("f32", [rows, 1]) }
        : {};
      const dOut = make.normal("f32", [rows, columns]);
      const bands: { groups?: RowGroups } =
        groups === undefined
          ? {}
          : { groups: { kind: "offsets", offsets: offsetsOf(make, groups) } };
      const wide = { format: "e4m3", rows, columns: 2 * columns } as const;
      const along = tilesToMake(make, wide, false);
      const across = tilesToMake(make, { ...wide, ...bands }, true);
      const input = tilesToMake(make, { ...wide, columns, ...bands }, true);
      const tiles = { along, across, input };
      const { dWeight } = weights;
      return {
        run: (device) => swigluTilesBackward(device, { gateUp, ...weights, dOut, ...tiles }),
        outputs: { ...outputsOf(tiles), ...(dWeight === undefined ? {} : { dWeight }) },
      };
    },
  };
}

function makeTilesCase(
  variant: (typeof MAKE_TILES_VARIANTS)[number],
  { rows, columns, groups }: TilesCase,
): ConformanceCase {
  const [of, made] = variant.split(".") as ["f32" | "bf16" | "norm", "along" | "across" | "both"];
  const grouped = groups === undefined ? "" : `, groups of ${groups} rows`;
  return {
    kernel: `makeTiles/${variant}`,
    title: `${rows}×${columns}${grouped}`,
    tolerance: toleranceFor("elementwise", "fp8_e4m3"),
    prepare(make): PreparedCase {
      const x = make.normal(of === "bf16" ? "bf16" : "f32", [rows, columns]);
      const gain = of === "norm" ? make.normal("f32", [1, columns]) : null;
      const norm = gain === null ? {} : { norm: { gain, epsilon: 1e-6 } };
      const bands: { groups?: RowGroups } =
        groups === undefined
          ? {}
          : { groups: { kind: "offsets", offsets: offsetsOf(make, groups) } };
      const shape = { format: "e4m3", rows, columns } as const;
      const tiles = {
        ...(made === "across" ? {} : { along: tilesToMake(make, shape, false) }),
        ...(made === "along" ? {} : { across: tilesToMake(make, { ...shape, ...bands }, true) }),
      };
      return {
        run: (device) => makeTiles(device, { x, ...norm, ...tiles }),
        outputs: outputsOf(tiles),
      };
    },
  };
}

export const TILE_STEP_CASES: readonly ConformanceCase[] = [
  ...[false, true].flatMap((isWeighted) =>
    CASES.flatMap((of) => [forwardCase(isWeighted, of), backwardCase(isWeighted, of)]),
  ),
  ...MAKE_TILES_VARIANTS.flatMap((variant) => CASES.map((of) => makeTilesCase(variant, of))),
];
