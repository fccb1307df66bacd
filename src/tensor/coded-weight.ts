/**
 * @file Weights that only inference reads: codes of 8 or 4 bits with a scale for each group of
 * values along a row, in the order that products read them in.
 *
 *     value[row, k] = scale[row, ⌊k / group⌋] · (code[row, k] + offset[row, ⌊k / group⌋])
 *
 *   int8, int4   scales bf16; offsets in asymmetric weights alone (minus the zero point)
 *   e4m3         code stands for its FP8 value; scales f32, no offsets
 *
 * Rows stand in panels of 16, as the 16 lanes of a vector; a panel's codes follow each other in
 * steps of 32 values of depth, the last one filled up with zeros. So a product loads codes of 16
 * output columns at once and needs no transposition:
 *
 *     8 bits   a step is 8 × 64 bytes; bytes 64v + 16q + 8h + 2i + e: row 4q + i, k = 4v + 2h + e
 *     4 bits   a step is 4 × 64 bytes; the u16 at 64v + 4·row + 2e has, from the low nibble up,
 *              k = 8v + 2j + e for j = 0..3
 *
 * int8 codes are sign and magnitude, −127..127; int4 codes are stored plus 8. Scales and offsets:
 * [panel][group][16 rows]. Several matrices of equal height (experts) may be stacked; panels begin
 * anew with each.
 */
import { assert } from "../base/errors.ts";
import { ceilDiv, divExact, floorDiv, isIntegerIn } from "../base/integers.ts";
import { toBf16 } from "../numerics/bf16.ts";
import { GROUP_SIZES, type GroupSize } from "../numerics/integer-groups.ts";
import type { DType } from "./dtype.ts";
import type { Tensor } from "./tensor.ts";
import { view } from "./view.ts";

export const CODED_FORMATS = ["int8", "int4", "e4m3"] as const;
export type CodedFormat = (typeof CODED_FORMATS)[number];

/** Rows of a panel. */
export const PANEL_ROWS = 16;
/** Values of depth in a step. */
export const STEP_DEPTH = 32;

export interface CodedShape {
  readonly format: CodedFormat;
  /** Of all stacked matrices. */
  readonly rows: number;
  readonly columns: number;
  /** Equal matrices that the rows are made of. */
  readonly numMatrices: number;
  /** Values along a row that share a scale: whole steps, and a whole number in products' blocks. */
  readonly groupSize: GroupSize;
  readonly asymmetric: boolean;
}

export interface CodedWeight extends CodedShape {
  readonly codes: Tensor<"u8">;
  readonly scales: Tensor<"bf16" | "f32">;
  /** Signed bytes; null where groups are symmetric. */
  readonly offsets: Tensor<"u8"> | null;
}

/** Sizes that follow from a shape: of one panel in bytes and elements, and how many there are. */
export interface CodedLayout {
  readonly panelsPerMatrix: number;
  readonly numPanels: number;
  readonly stepBytes: number;
  readonly panelCodeBytes: number;
  readonly groups: number;
  /** Scales (and offsets) of a panel. */
  readonly panelScales: number;
}

export function codedLayout(shape: CodedShape): CodedLayout {
  const { format, rows, columns, numMatrices, groupSize } = shape;
  const panelsPerMatrix = ceilDiv(divExact(rows, numMatrices), PANEL_ROWS);
  const stepBytes = PANEL_ROWS * STEP_DEPTH * (format === "int4" ? 0.5 : 1);
  const groups = ceilDiv(columns, groupSize);
  return {
    panelsPerMatrix,
    numPanels: numMatrices * panelsPerMatrix,
    stepBytes,
    panelCodeBytes: ceilDiv(columns, STEP_DEPTH) * stepBytes,
    groups,
    panelScales: groups * PANEL_ROWS,
  };
}

function scaleDtype(format: CodedFormat): "bf16" | "f32" {
  return format === "e4m3" ? "f32" : "bf16";
}

/** Bytes of codes, scales and offsets. */
export function codedBytes(shape: CodedShape): number {
  const { numPanels, panelCodeBytes, panelScales } = codedLayout(shape);
  const scaleBytes = (shape.format === "e4m3" ? 4 : 2) + (shape.asymmetric ? 1 : 0);
  return numPanels * (panelCodeBytes + panelScales * scaleBytes);
}

/** What tensors are allocated from; an `Arena` is one. */
interface TensorSource {
  allocateZeros<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D>;
}

/** A weight whose scales are 0. */
export function allocateCoded(arena: TensorSource, shape: CodedShape): CodedWeight {
  const { numPanels, panelCodeBytes, panelScales } = codedLayout(shape);
  const coded: CodedWeight = {
    ...shape,
    codes: arena.allocateZeros("u8", [1, numPanels * panelCodeBytes]),
    scales: arena.allocateZeros(scaleDtype(shape.format), [1, numPanels * panelScales]),
    offsets: shape.asymmetric ? arena.allocateZeros("u8", [1, numPanels * panelScales]) : null,
  };
  assertCoded("coded weight", coded);
  return coded;
}

/** Groups and matrices are whole, and codes, scales and offsets have the sizes that follow. */
export function assertCoded(name: string, coded: CodedWeight): void {
  const { format, rows, numMatrices, groupSize, asymmetric, codes, scales, offsets } = coded;
  assert(
    GROUP_SIZES.includes(groupSize),
    `${name}: groups (${groupSize}) are of ${GROUP_SIZES.join(", ")}`,
  );
  assert(
    isIntegerIn(numMatrices, 1, 2 ** 24) && rows % numMatrices === 0,
    `${name}: ${numMatrices} matrices do not divide ${rows} rows`,
  );
  assert(!(asymmetric && format === "e4m3"), `${name}: e4m3 has no offsets`);
  const { numPanels, panelCodeBytes, panelScales } = codedLayout(coded);
  const parts: readonly [string, Tensor, DType, number][] = [
    ["codes", codes, "u8", numPanels * panelCodeBytes],
    ["scales", scales, scaleDtype(format), numPanels * panelScales],
  ];
  for (const [part, tensor, dtype, elements] of parts)
    checkPart(name, part, tensor, dtype, elements);
  assert((offsets !== null) === asymmetric, `${name}: offsets exactly where it is asymmetric`);
  if (offsets !== null) checkPart(name, "offsets", offsets, "u8", numPanels * panelScales);
}

function checkPart(
  name: string,
  part: string,
  { dtype, rows, columns }: Tensor,
  expected: DType,
  elements: number,
): void {
  assert(
    dtype === expected && rows === 1 && columns === elements,
    `${name}: ${part} are ${rows}×${columns} ${dtype}, not 1×${elements} ${expected}`,
  );
}

/** Where a row stands: its panel and its lane. */
function placeOfRow(coded: CodedShape, { panelsPerMatrix }: CodedLayout, row: number) {
  const height = divExact(coded.rows, coded.numMatrices);
  const matrix = floorDiv(row, height);
  const within = row - matrix * height;
  const panel = floorDiv(within, PANEL_ROWS);
  return { panel: matrix * panelsPerMatrix + panel, lane: within - panel * PANEL_ROWS };
}

/** Byte within a step of lane 0's value at depth `k` (8 bits). */
const BYTE_OF_DEPTH = Uint16Array.from(
  { length: STEP_DEPTH },
  (_, k) => 64 * (k >> 2) + 8 * ((k >> 1) & 1) + (k & 1),
);
/** The same for 4 bits; odd halves of it stand in the upper nibble. */
const NIBBLE_OF_DEPTH = Uint16Array.from(
  { length: STEP_DEPTH },
  (_, k) => 2 * (64 * (k >> 3) + 2 * (k & 1)) + ((k >> 1) & 3),
);

/** A row's numbers: one code a value, a scale a group; zeros only where groups are asymmetric. */
export interface CodedRowParts {
  /** int8, int4: the code; e4m3: its bits. */
  readonly codes: Int8Array | Uint8Array;
  readonly scales: Float32Array;
  readonly zeros?: Int8Array;
}

/** Write one row. int4 codes must lie in −8..7, int8 codes in −127..127. */
export function writeCodedRow(coded: CodedWeight, row: number, parts: CodedRowParts): void {
  const layout = codedLayout(coded);
  const { panel, lane } = placeOfRow(coded, layout, row);
  const bytes = view(coded.codes);
  const start = panel * layout.panelCodeBytes;
  const { codes, scales, zeros } = parts;
  const laneByte = 16 * (lane >> 2) + 2 * (lane & 3);
  for (let k = 0; k < codes.length; k++) {
    const step = start + (k >> 5) * layout.stepBytes;
    const code = codes[k]!;
    if (coded.format === "int4") {
      const nibble = NIBBLE_OF_DEPTH[k & 31]! + 8 * lane;
      const at = step + (nibble >> 1);
      const shift = 4 * (nibble & 1);
      bytes[at] = (bytes[at]! & ~(15 << shift)) | ((code + 8) << shift);
    } else {
      const stored = coded.format === "int8" && code < 0 ? 0x80 | -code : code;
      bytes[step + BYTE_OF_DEPTH[k & 31]! + laneByte] = stored;
    }
  }
  const first = panel * layout.panelScales + lane;
  const target = view(coded.scales);
  const isBf16 = coded.scales.dtype === "bf16";
  const offsets = coded.offsets === null ? null : view(coded.offsets);
  for (let group = 0; group < layout.groups; group++) {
    const at = first + group * PANEL_ROWS;
    target[at] = isBf16 ? toBf16(scales[group]!) : scales[group]!;
    if (offsets !== null) offsets[at] = -(zeros?.[group] ?? 0);
  }
}
