/**
 * @file Integer weights of a checkpoint in the `pack-quantized` form of compressed-tensors: four or
 * eight bits in words of 32, with a scale for each group of a row.
 *
 *     X.weight_packed      I32 [out, ⌈in · bits / 32⌉]     codes + 2^(bits − 1), the first lowest
 *     X.weight_scale       BF16 [out, ⌈in / group⌉]
 *     X.weight_zero_point  I32 [⌈out · bits / 32⌉, groups] packed likewise down the rows; only
 *                          where groups are asymmetric
 *     X.weight_shape       I64 [2]                          out, in
 *
 *     weight = scale · (code − zero point)
 *
 * X.weight is the name of the tensor that they stand for. int8 codes of −128 are read as −127 (a
 * 127th of the group's extreme), which is how far symmetric codes go here; written are none.
 * Source: the compressor of that name in the compressed-tensors library.
 */
import { OperationalError } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import { decodeBf16, encodeBf16 } from "../numerics/bf16.ts";
import {
  type CodedRow,
  codeRange,
  type GroupRule,
  makeCodedRow,
  quantizeRow,
} from "../numerics/integer-groups.ts";
import { decodeFloats, isFloatDtype } from "./float-codec.ts";
import type { TensorInfo, TensorReader, TensorSource } from "./tensors.ts";

/** The names that stand for a weight. */
export function packedNames(weight: string): {
  readonly packed: string;
  readonly scale: string;
  readonly zeroPoint: string;
  readonly shape: string;
} {
  return {
    packed: `${weight}_packed`,
    scale: `${weight}_scale`,
    zeroPoint: `${weight}_zero_point`,
    shape: `${weight}_shape`,
  };
}

interface MatrixShape {
  readonly rows: number;
  readonly columns: number;
}

/** The tensors of a weight, to write. `values` is called once for each of three of them. */
export function packedWeightSources(
  weight: string,
  { rows, columns }: MatrixShape,
  values: () => Float32Array,
  rule: GroupRule,
): TensorSource[] {
  const names = packedNames(weight);
  const perWord = 32 / rule.bits;
  const groups = ceilDiv(columns, rule.groupSize);
  const [words, zeroRows] = [ceilDiv(columns, perWord), ceilDiv(rows, perWord)];
  const eachRow = (take: (row: CodedRow, index: number) => void): void => {
    const all = values();
    const row = makeCodedRow(columns, rule.groupSize);
    for (let index = 0; index < rows; index++) {
      quantizeRow(all.subarray(index * columns, (index + 1) * columns), rule, row);
      take(row, index);
    }
  };
  const least = 2 ** (rule.bits - 1);
  const put = (target: Uint32Array, word: number, lane: number, code: number): void => {
    target[word] = target[word]! | ((code + least) << (rule.bits * lane));
  };
  const packed = (): Uint8Array => {
    const out = new Uint32Array(rows * words);
    eachRow(({ codes }, index) => {
      for (let at = 0; at < columns; at++) {
        put(out, index * words + Math.floor(at / perWord), at % perWord, codes[at]!);
      }
    });
    return new Uint8Array(out.buffer);
  };
  const scales = (): Uint8Array => {
    const out = new Uint16Array(rows * groups);
    eachRow((row, index) =>
      encodeBf16(row.scales, out.subarray(index * groups, (index + 1) * groups)),
    );
    return new Uint8Array(out.buffer);
  };
  const zeroPoints = (): Uint8Array => {
    const out = new Uint32Array(zeroRows * groups);
    eachRow(({ zeros }, index) => {
      const first = Math.floor(index / perWord) * groups;
      for (let group = 0; group < groups; group++) {
        put(out, first + group, index % perWord, zeros[group]!);
      }
    });
    return new Uint8Array(out.buffer);
  };
  const shape = (): Uint8Array =>
    new Uint8Array(BigInt64Array.of(BigInt(rows), BigInt(columns)).buffer);
  return [
    { name: names.packed, dtype: "I32", shape: [rows, words], data: packed },
    { name: names.scale, dtype: "BF16", shape: [rows, groups], data: scales },
    ...(rule.asymmetric
      ? [
          {
            name: names.zeroPoint,
            dtype: "I32",
            shape: [zeroRows, groups],
            data: zeroPoints,
          } as const,
        ]
      : []),
    { name: names.shape, dtype: "I64", shape: [2], data: shape },
  ];
}

/** The rows of a packed weight, one after another; each is good until the next is asked for. */
export function* readPackedRows(
  reader: TensorReader,
  weight: string,
  { rows, columns }: MatrixShape,
  rule: GroupRule,
): Generator<CodedRow> {
  const names = packedNames(weight);
  const { bits, groupSize, asymmetric } = rule;
  const perWord = 32 / bits;
  const groups = ceilDiv(columns, groupSize);
  const [words, zeroRows] = [ceilDiv(columns, perWord), ceilDiv(rows, perWord)];
  requireShape(reader, names.shape, ["I64", "I32"], [2]);
  requireSizes(reader, names.shape, [rows, columns]);
  const packed = readWords(reader, names.packed, [rows, words]);
  const scales = readScales(reader, names.scale, [rows, groups]);
  const zeros = asymmetric ? readWords(reader, names.zeroPoint, [zeroRows, groups]) : null;
  const [mask, least] = [2 ** bits - 1, 2 ** (bits - 1)];
  const [leastCode] = codeRange(bits);
  const code = (word: number, lane: number): number =>
    Math.max(leastCode, ((word >>> (bits * lane)) & mask) - least);
  const row = makeCodedRow(columns, groupSize);
  for (let index = 0; index < rows; index++) {
    for (let at = 0; at < columns; at++) {
      row.codes[at] = code(packed[index * words + Math.floor(at / perWord)]!, at % perWord);
    }
    row.scales.set(scales.subarray(index * groups, (index + 1) * groups));
    for (let group = 0; group < groups; group++) {
      const word = zeros?.[Math.floor(index / perWord) * groups + group];
      row.zeros[group] = word === undefined ? 0 : code(word, index % perWord);
    }
    yield row;
  }
}

function readWords(reader: TensorReader, name: string, shape: readonly number[]): Uint32Array {
  requireShape(reader, name, ["I32"], shape);
  return new Uint32Array(reader.read(name).buffer);
}

function readScales(reader: TensorReader, name: string, shape: readonly number[]): Float32Array {
  const { dtype } = requireShape(reader, name, ["BF16", "F16", "F32"], shape);
  const bytes = reader.read(name);
  const out = new Float32Array(shape.reduce((product, size) => product * size, 1));
  if (isFloatDtype(dtype)) decodeFloats(dtype, bytes, out);
  // Products read scales in bf16: others are refused rather than rounded in silence.
  const rounded = new Uint16Array(out.length);
  encodeBf16(out, rounded);
  const kept = new Float32Array(out.length);
  decodeBf16(rounded, kept);
  if (kept.every((scale, index) => scale === out[index])) return out;
  const message = `${name} holds ${dtype} scales that bf16 does not hold; store them as BF16`;
  throw new OperationalError("checkpoint.unsupported", message, { name });
}

function requireShape(
  reader: TensorReader,
  name: string,
  dtypes: readonly string[],
  shape: readonly number[],
): TensorInfo {
  const info = reader.tensors.get(name);
  if (info === undefined) {
    const message = `the checkpoint has no tensor ${JSON.stringify(name)}`;
    throw new OperationalError("checkpoint.tensorMissing", message, { name });
  }
  if (dtypes.includes(info.dtype) && info.shape.join() === shape.join()) return info;
  throw new OperationalError(
    "checkpoint.shape",
    `${name} is ${info.dtype} [${info.shape}]; expected ${dtypes.join(" or ")} [${shape}]`,
    { name },
  );
}

/** `weight_shape` says what config.json says. */
function requireSizes(reader: TensorReader, name: string, sizes: readonly number[]): void {
  const bytes = reader.read(name);
  const isLong = reader.tensors.get(name)?.dtype === "I64";
  const stored = isLong
    ? Array.from(new BigInt64Array(bytes.buffer), Number)
    : [...new Int32Array(bytes.buffer)];
  if (stored.join() === sizes.join()) return;
  const message = `${name} says [${stored}]; config.json wants [${sizes}]`;
  throw new OperationalError("checkpoint.shape", message, { name });
}
