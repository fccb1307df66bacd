/**
 * @file Weights as small integers: 8 or 4 bits, one bf16 scale for each group of values along a
 * row, and for asymmetric groups an integer zero point.
 *
 *     value ≈ scale · (code − zero)              zero = 0 where groups are symmetric
 *
 *     int8   codes and zeros −127..127    symmetric: scale = amax / 127
 *     int4   codes and zeros   −8..7      symmetric: scale = value of largest magnitude / −8
 *     asymmetric: scale = (max − min) / (254 or 15), where min <= 0 <= max; zero is the code of 0
 *
 * A symmetric int4 scale is negative where the extreme is positive, so that the sixteenth code is
 * never idle. Scales are rounded to bf16 before codes are taken, so that what is rounded is what is
 * stored. A group of zeros has scale 0. Values must be finite.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import { fromBf16, toBf16 } from "./bf16.ts";

export const INTEGER_BITS = [8, 4] as const;
export type IntegerBits = (typeof INTEGER_BITS)[number];

/** Values that share a scale. */
export const GROUP_SIZES = [32, 64, 128] as const;
export type GroupSize = (typeof GROUP_SIZES)[number];

/** How a row is quantised. */
export interface GroupRule {
  readonly bits: IntegerBits;
  readonly groupSize: GroupSize;
  readonly asymmetric: boolean;
}

/** One row: a code a value, a scale (and a zero, if asymmetric) a group. */
export interface CodedRow {
  readonly codes: Int8Array;
  readonly scales: Float32Array;
  /** All zero in symmetric rows. */
  readonly zeros: Int8Array;
}

/** The codes there are: least and largest. */
export function codeRange(bits: IntegerBits): readonly [least: number, most: number] {
  return bits === 8 ? [-127, 127] : [-8, 7];
}

/** Room for a row of `columns` values. */
export function makeCodedRow(columns: number, groupSize: number): CodedRow {
  const groups = ceilDiv(columns, groupSize);
  return {
    codes: new Int8Array(columns),
    scales: new Float32Array(groups),
    zeros: new Int8Array(groups),
  };
}

/** Quantise a row; the last group may be shorter. Refuses values that are not finite. */
export function quantizeRow(values: Float32Array, rule: GroupRule, out: CodedRow): void {
  const { groupSize, asymmetric } = rule;
  assert(out.codes.length === values.length, "as many codes as values");
  for (let group = 0; group < out.scales.length; group++) {
    const start = group * groupSize;
    const end = Math.min(values.length, start + groupSize);
    if (asymmetric) quantizeAsymmetric(values, rule, { group, start, end }, out);
    else quantizeSymmetric(values, rule, { group, start, end }, out);
  }
}

interface Group {
  readonly group: number;
  readonly start: number;
  readonly end: number;
}

function quantizeSymmetric(
  values: Float32Array,
  { bits }: GroupRule,
  { group, start, end }: Group,
  out: CodedRow,
): void {
  const [least, most] = codeRange(bits);
  let extreme = 0;
  for (let at = start; at < end; at++) {
    const value = values[at]!;
    if (Math.abs(value) > Math.abs(extreme) || Number.isNaN(value)) extreme = value;
  }
  requireFinite(extreme);
  const scale = scaleOf(bits === 8 ? Math.abs(extreme) / most : extreme / least);
  const inverse = scale === 0 ? 0 : 1 / scale;
  out.scales[group] = scale;
  out.zeros[group] = 0;
  for (let at = start; at < end; at++) {
    out.codes[at] = clamp(nearest(values[at]! * inverse), least, most);
  }
}

function quantizeAsymmetric(
  values: Float32Array,
  { bits }: GroupRule,
  { group, start, end }: Group,
  out: CodedRow,
): void {
  const [least, most] = codeRange(bits);
  let [low, high] = [0, 0];
  for (let at = start; at < end; at++) {
    const value = values[at]!;
    requireFinite(value);
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = scaleOf((high - low) / (most - least));
  const inverse = scale === 0 ? 0 : 1 / scale;
  const zero = clamp(nearest(least - low * inverse), least, most);
  out.scales[group] = scale;
  out.zeros[group] = scale === 0 ? 0 : zero;
  for (let at = start; at < end; at++) {
    const code = scale === 0 ? 0 : nearest(values[at]! * inverse) + zero;
    out.codes[at] = clamp(code, least, most);
  }
}

/** The values of a row. */
export function dequantizeRow(row: CodedRow, groupSize: number, out: Float32Array): void {
  for (let at = 0; at < out.length; at++) {
    const group = Math.floor(at / groupSize);
    out[at] = row.scales[group]! * (row.codes[at]! - row.zeros[group]!);
  }
}

/** The bf16 of least magnitude that is not below this one's. */
function scaleOf(value: number): number {
  const code = toBf16(value);
  const rounded = fromBf16(code);
  return Math.abs(rounded) < Math.abs(value) ? fromBf16(code + 1) : rounded;
}

function requireFinite(value: number): void {
  if (Number.isFinite(value)) return;
  throw new OperationalError(
    "numerics.notFinite",
    `a weight is ${value}: integers hold finite values; the checkpoint is damaged, or its training`,
  );
}

/** Halves away from zero. */
function nearest(value: number): number {
  return value < 0 ? -Math.floor(0.5 - value) : Math.floor(value + 0.5);
}

function clamp(value: number, least: number, most: number): number {
  return Math.min(most, Math.max(least, value));
}
