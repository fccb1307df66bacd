/**
 * @file The row programs of quantisation by tiles, exact to the bit of the contract.
 *
 * "Along": a row of the launch is one row of one tile, whose scale is the row's own. "Across": the
 * tiles are several rows high; `scales` and `amax` have one value a column. Codes are bytes, those
 * of E5M6 16-bit words that are packed elsewhere. A 16-bit operand is declared bf16 and read and
 * written as bits.
 */
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import type { OperandDeclaration, Recorder } from "../../codegen/vector/recorder.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import type { SmallFloat } from "../../numerics/small-float.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import { perRow, row, vector } from "../row-operands.ts";
import type { OpenDType } from "./contract.ts";
import { FORMATS } from "./reference.ts";

const FRACTION_BITS = 23;
const FLOAT_BIAS = 127;
const INFINITY = 0x7f800000;

function codeRow(format: ScaledFormat): OperandDeclaration {
  return row(format === "e5m6" ? "bf16" : "u8");
}

/** scale ← of the row's largest magnitude; codes ← x ÷ scale. */
export function quantizeAlongProgram(from: OpenDType, to: ScaledFormat): RowProgram {
  const format = FORMATS[to];
  return rowProgram({
    name: `quantizeAlong/${from}.${to}`,
    operands: { x: row(from), scale: perRow(), codes: codeRow(to) },
    scalars: ["amaxMin", "powerOfTwo"],
    body(v, { x, scale, codes }, { amaxMin, powerOfTwo }) {
      const { amax } = v.columns(() => ({ amax: v.rowMax(v.abs(v.load(x))) }));
      const exact = v.div(v.max(amaxMin, amax), v.float(format.largest));
      // The next power of two: the fraction is carried into the exponent, unless it is zero.
      const carried = v.integerAdd(exact, v.integer((1 << FRACTION_BITS) - 1));
      const rounded = v.and(carried, v.integer(INFINITY));
      const chosen = v.select(v.less(v.float(0), powerOfTwo), rounded, exact);
      v.storePerRow(scale, chosen);
      v.columns(() => v.storeBits(codes, encode(v, format, v.div(v.load(x), chosen))));
    },
  });
}

/** amax ← the larger of amax and |x|, column by column; NaN counts as nothing. One task. */
export function columnAmaxProgram(from: OpenDType): RowProgram {
  return rowProgram({
    name: `columnAmax/${from}`,
    operands: { x: row(from), amax: vector() },
    scalars: [],
    body(v, { x, amax }) {
      v.columns(() => v.store(amax, v.max(v.abs(v.load(x)), v.load(amax))));
    },
  });
}

/** codes ← x ÷ scales */
export function encodeAcrossProgram(from: OpenDType, to: ScaledFormat): RowProgram {
  return rowProgram({
    name: `encodeAcross/${from}.${to}`,
    operands: { x: row(from), scales: vector(), codes: codeRow(to) },
    scalars: [],
    body(v, { x, scales, codes }) {
      v.columns(() => {
        v.storeBits(codes, encode(v, FORMATS[to], v.div(v.load(x), v.load(scales))));
      });
    },
  });
}

/** out ← codes · scale */
export function decodeAlongProgram(from: ScaledFormat, to: OpenDType): RowProgram {
  return rowProgram({
    name: `decodeAlong/${from}.${to}`,
    operands: { codes: codeRow(from), scale: perRow(), out: row(to) },
    scalars: [],
    body(v, { codes, scale, out }) {
      const factor = v.loadPerRow(scale);
      v.columns(() =>
        v.store(out, v.mul(decodedValue(v, FORMATS[from], v.loadBits(codes)), factor)),
      );
    },
  });
}

/** out ← codes · scales */
export function decodeAcrossProgram(from: ScaledFormat, to: OpenDType): RowProgram {
  return rowProgram({
    name: `decodeAcross/${from}.${to}`,
    operands: { codes: codeRow(from), scales: vector(), out: row(to) },
    scalars: [],
    body(v, { codes, scales, out }) {
      v.columns(() => {
        v.store(out, v.mul(decodedValue(v, FORMATS[from], v.loadBits(codes)), v.load(scales)));
      });
    },
  });
}

/** The code nearest to x, ties to even, as `encodeBits` of numerics/small-float.ts. */
function encode(v: Recorder, format: SmallFloat, x: Value): Value {
  const { bias, fractionBits, signBit, overflowCode, nanCode } = format;
  const drop = FRACTION_BITS - fractionBits;
  const magnitude = v.abs(x);
  const sign = v.and(v.shiftRight(x, 31 - Math.log2(signBit)), v.integer(signBit));
  const odd = v.and(v.shiftRight(magnitude, drop), v.integer(1));
  const half = v.integer(2 ** (drop - 1) - 1);
  const carried = v.integerAdd(v.integerAdd(magnitude, half), odd);
  const rebias = v.integer((FLOAT_BIAS - bias) * 2 ** fractionBits);
  const normal = v.integerSub(v.shiftRight(carried, drop), rebias);
  // A float whose last place is the smallest subnormal: adding to it rounds to whole ones.
  const magic = v.integer((FLOAT_BIAS + FRACTION_BITS + 1 - bias - fractionBits) << FRACTION_BITS);
  const small = v.integerSub(v.add(magnitude, magic), magic);
  const leastNormal = v.integer((FLOAT_BIAS + 1 - bias) << FRACTION_BITS);
  const finite = v.select(v.integerLess(magnitude, leastNormal), small, normal);
  const most = v.integer(overflowCode);
  const code = v.select(v.integerLess(most, finite), most, finite);
  const isNan = v.integerLess(v.integer(INFINITY), magnitude);
  return v.or(v.select(isNan, v.integer(nanCode), code), sign);
}

/** The value of a code: its bits moved to a float's, which multiplied by 2^k has the right bias. */
export function decodedValue(v: Recorder, format: SmallFloat, code: Value): Value {
  const { bias, fractionBits, signBit, largestCode, overflowCode } = format;
  const sign = v.shiftLeft(v.and(code, v.integer(signBit)), 31 - Math.log2(signBit));
  const magnitude = v.and(code, v.integer(signBit - 1));
  const moved = v.shiftLeft(magnitude, FRACTION_BITS - fractionBits);
  const value = v.mul(moved, v.float(2 ** (FLOAT_BIAS - bias)));
  // What lies beyond the largest is NaN, or infinity where the format has one.
  const beyond =
    overflowCode === largestCode ? v.integer(0x7fc00000) : v.or(moved, v.integer(INFINITY));
  const isBeyond = v.integerLess(v.integer(largestCode), magnitude);
  return v.or(v.select(isBeyond, beyond, value), sign);
}
