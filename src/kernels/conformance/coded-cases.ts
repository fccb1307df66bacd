/**
 * @file Conformance cases of products with coded weights: every format and size of group, ragged,
 * grouped, empty, with a NaN in a row.
 */

import type { GroupSize } from "../../numerics/integer-groups.ts";
import { toleranceFor } from "../../numerics/tolerance.ts";
import {
  type CodedFormat,
  type CodedShape,
  type CodedWeight,
  codedLayout,
  writeCodedRow,
} from "../../tensor/coded-weight.ts";
import { CODED_MATMUL_VARIANTS, codedMatmul, parseCodedVariant } from "../coded-matmul/contract.ts";
import type { ConformanceCase, PreparedCase } from "./conformance.ts";
import { offsetsOf } from "./matmul-cases.ts";
import type { TensorMaker } from "./tensor-maker.ts";

/** m × n × k: one row and a few, around panels and steps, deep, flat, empty; and a group's size. */
const CASES: readonly (readonly [m: number, n: number, k: number, groupSize: GroupSize])[] = [
  [1, 1, 1, 32],
  [1, 100, 160, 32],
  [2, 130, 96, 64],
  [3, 33, 65, 32],
  [5, 64, 200, 128],
  [8, 17, 300, 64],
  [9, 40, 129, 128],
  [13, 33, 32, 32],
  [37, 70, 1300, 128],
  [30, 290, 64, 64],
  [4, 5, 0, 32],
  [0, 5, 64, 32],
];

const CODES: Readonly<Record<CodedFormat, readonly [least: number, most: number]>> = {
  int8: [-127, 127],
  int4: [-8, 7],
  // Of either sign, up to 2.
  e4m3: [0, 0x40],
};

/** Random codes of every kind, scales of both signs, and what follows the last row unwritten. */
function randomCoded(make: TensorMaker, shape: CodedShape): CodedWeight {
  const { format, asymmetric, columns } = shape;
  const { numPanels, panelCodeBytes, panelScales, groups } = codedLayout(shape);
  const exact = { contiguous: true };
  const zeros = (): number => 0;
  const weight: CodedWeight = {
    ...shape,
    codes: make.filled("u8", [1, numPanels * panelCodeBytes], zeros, exact),
    scales: make.filled(
      format === "e4m3" ? "f32" : "bf16",
      [1, numPanels * panelScales],
      zeros,
      exact,
    ),
    offsets: asymmetric ? make.filled("u8", [1, numPanels * panelScales], zeros, exact) : null,
  };
  const [least, most] = CODES[format];
  const below = (count: number): number => make.random.below(count);
  for (let row = 0; row < shape.rows; row++) {
    const code = (): number => least + below(most - least + 1);
    const codes =
      format === "e4m3"
        ? Uint8Array.from({ length: columns }, () => code() | (0x80 * below(2)))
        : Int8Array.from({ length: columns }, code);
    writeCodedRow(weight, row, {
      codes,
      scales: Float32Array.from({ length: groups }, () => 0.01 * (make.random.uniform() - 0.3)),
      zeros: Int8Array.from({ length: groups }, code),
    });
  }
  return weight;
}

interface CodedCase {
  readonly variant: string;
  readonly sizes: readonly [m: number, n: number, k: number, groupSize: GroupSize];
  readonly accumulate?: boolean;
  readonly hasNan?: boolean;
}

function productCase({
  variant,
  sizes,
  accumulate = false,
  hasNan = false,
}: CodedCase): ConformanceCase {
  const [m, n, k, groupSize] = sizes;
  const { format, hasOffsets } = parseCodedVariant(variant);
  const adds = accumulate ? ", adding" : "";
  return {
    kernel: `codedMatmul/${variant}`,
    title: `${m}×${n}×${k} in groups of ${groupSize}${adds}${hasNan ? ", with NaN" : ""}`,
    tolerance: toleranceFor("matmul", "bf16", k),
    prepare(make): PreparedCase {
      const shape = { format, groupSize, asymmetric: hasOffsets, rows: n, columns: k };
      const weight = randomCoded(make, { ...shape, numMatrices: 1 });
      const draw = (row: number, column: number): number =>
        hasNan && row === 1 && column === 3 ? Number.NaN : make.random.normal();
      const a = make.filled("bf16", [m, k], draw);
      const out = accumulate ? make.normal("f32", [m, n]) : make.poisoned("f32", [m, n]);
      return {
        run: (device) => codedMatmul(device, { a, weight, out, accumulate }),
        outputs: { out },
      };
    },
  };
}

/** Experts of one row, of several, of many and of none. */
function groupedCase(
  variant: string,
  sizes: readonly number[],
  accumulate: boolean,
): ConformanceCase {
  const { format, hasOffsets } = parseCodedVariant(variant);
  const [n, k] = [37, 70];
  return {
    kernel: `codedMatmul/${variant}`,
    title: `groups of ${sizes} rows${accumulate ? ", adding" : ""}`,
    tolerance: toleranceFor("matmul", "bf16", k),
    prepare(make): PreparedCase {
      const numMatrices = sizes.length;
      const shape = { format, groupSize: 32 as const, asymmetric: hasOffsets, columns: k };
      const weight = randomCoded(make, { ...shape, rows: numMatrices * n, numMatrices });
      const rows = sizes.reduce((sum, size) => sum + size, 0) + 1;
      const offsets = offsetsOf(make, sizes);
      const a = make.normal("bf16", [rows, k]);
      const out = accumulate ? make.normal("f32", [rows, n]) : make.poisoned("f32", [rows, n]);
      const call = { a, weight, out, offsets, accumulate };
      return { run: (device) => codedMatmul(device, call), outputs: { out } };
    },
  };
}

export const CODED_CASES: readonly ConformanceCase[] = CODED_MATMUL_VARIANTS.flatMap((variant) => [
  ...CASES.map((sizes) => productCase({ variant, sizes })),
  ...CASES.slice(1, 9).map((sizes) => productCase({ variant, sizes, accumulate: true })),
  productCase({ variant, sizes: [4, 40, 64, 32], hasNan: true }),
  productCase({ variant, sizes: [20, 40, 64, 32], hasNan: true }),
  groupedCase(variant, [1, 0, 3, 21, 1], false),
  groupedCase(variant, [0, 2, 9], true),
]);
