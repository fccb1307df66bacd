/**
 * @file Weights as values: read whatever a checkpoint stores them as, and store them in FP8.
 *
 * The FP8 form of a weight X of shape [out, in] is two tensors: X, E4M3 codes of the same shape,
 * and `X_scale_inv`, F32 [⌈out/128⌉, ⌈in/128⌉]. Despite its name the scale dequantises: weight =
 * code × scale of its 128×128 block.
 *
 * Source: the layout of the released DeepSeek-V3 checkpoint.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { E4M3 } from "../numerics/fp8.ts";
import {
  blockGrid,
  computeScales,
  dequantize,
  numScales,
  type PatchGrid,
  quantize,
  type ScaleRule,
  WEIGHT_AMAX_MIN,
} from "../numerics/scales.ts";
import { decodeFloats, isFloatDtype } from "./float-codec.ts";
import type { TensorInfo, TensorReader, TensorSource } from "./tensors.ts";

/** The tensor that holds the scales of an FP8 weight. */
export function scaleName(weightName: string): string {
  return `${weightName}_scale_inv`;
}

/** An FP8 weight: codes [rows, columns], scales row-major by 128×128 block. */
export interface Fp8Weight {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
}

function scaleRule(powerOfTwo: boolean): ScaleRule {
  return { format: E4M3, amaxMin: WEIGHT_AMAX_MIN, powerOfTwo };
}

/** Quantise a weight; `powerOfTwo` is the "ue8m0" scale format of later checkpoints. */
export function encodeFp8Weight(
  values: Float32Array,
  shape: { rows: number; columns: number },
  powerOfTwo: boolean = false,
): Fp8Weight {
  const grid = blockGrid(shape.rows, shape.columns);
  const weight = { codes: new Uint8Array(values.length), scales: scalesOf(grid) };
  quantize(values, grid, scaleRule(powerOfTwo), weight);
  return weight;
}

/** The values of an FP8 weight. */
export function decodeFp8Weight(
  weight: Fp8Weight,
  shape: { rows: number; columns: number },
  out: Float32Array,
): void {
  dequantize(weight, blockGrid(shape.rows, shape.columns), E4M3, out);
}

function scalesOf(grid: PatchGrid): Float32Array<ArrayBuffer> {
  return new Float32Array(numScales(grid));
}

/**
 * The two tensors of a weight's FP8 form, to write. `values` is called for each of them, so that
 * nothing is held between the two.
 */
export function fp8WeightSources(
  name: string,
  shape: { rows: number; columns: number },
  values: () => Float32Array,
  powerOfTwo: boolean = false,
): TensorSource[] {
  const { rows, columns } = shape;
  const grid = blockGrid(rows, columns);
  const scaleData = (): Uint8Array => {
    const scales = scalesOf(grid);
    computeScales(values(), grid, scaleRule(powerOfTwo), scales);
    return new Uint8Array(scales.buffer);
  };
  return [
    {
      name,
      dtype: "F8_E4M3",
      shape: [rows, columns],
      data: () => encodeFp8Weight(values(), shape, powerOfTwo).codes,
    },
    {
      name: scaleName(name),
      dtype: "F32",
      shape: [grid.scaleRows, grid.scaleColumns],
      data: scaleData,
    },
  ];
}

/**
 * Read a weight as float32 values, whatever it is stored as: F32, BF16, F16, or E4M3 with its
 * scales. `out` must have as many elements as the tensor.
 */
export function readWeightInto(reader: TensorReader, name: string, out: Float32Array): void {
  const info = findTensor(reader, name);
  const numElements = info.shape.reduce((product, dimension) => product * dimension, 1);
  assert(out.length === numElements, `${name} has ${numElements} elements, out ${out.length}`);
  if (info.dtype === "F32") {
    reader.readInto(name, new Uint8Array(out.buffer, out.byteOffset, out.byteLength));
  } else if (isFloatDtype(info.dtype)) {
    const bytes = new Uint8Array(2 * numElements);
    reader.readInto(name, bytes);
    decodeFloats(info.dtype, bytes, out);
  } else if (info.dtype === "F8_E4M3") {
    readFp8WeightInto(reader, info, out);
  } else {
    const message = `tensor ${name} is ${info.dtype}; weights are F32, BF16, F16 or F8_E4M3`;
    throw new OperationalError("checkpoint.unsupported", message, { name, dtype: info.dtype });
  }
}

function findTensor(reader: TensorReader, name: string): TensorInfo {
  const info = reader.tensors.get(name);
  if (info !== undefined) return info;
  const message = `the checkpoint has no tensor ${JSON.stringify(name)}`;
  throw new OperationalError("checkpoint.tensorMissing", message, { name });
}

function readFp8WeightInto(reader: TensorReader, info: TensorInfo, out: Float32Array): void {
  const weight = readFp8Weight(reader, info.name);
  const [rows = 0, columns = 0] = info.shape;
  decodeFp8Weight(weight, { rows, columns }, out);
}

/** Codes and scales of an FP8 weight, which must be E4M3 with a scale for each block. */
export function readFp8Weight(reader: TensorReader, name: string): Fp8Weight {
  const { shape } = findTensor(reader, name);
  const [rows, columns] = shape;
  if (rows === undefined || columns === undefined || shape.length !== 2) {
    const message = `FP8 weight ${name} has shape [${shape}], expected [out, in]`;
    throw new OperationalError("checkpoint.invalid", message, { name });
  }
  const scaleInfo = findTensor(reader, scaleName(name));
  const grid = blockGrid(rows, columns);
  const expected = [grid.scaleRows, grid.scaleColumns];
  if (scaleInfo.dtype !== "F32" || scaleInfo.shape.join() !== expected.join()) {
    const message =
      `${scaleInfo.name} is ${scaleInfo.dtype} [${scaleInfo.shape}], expected F32 [${expected}] ` +
      `for a weight of shape [${shape}]`;
    throw new OperationalError("checkpoint.invalid", message, { name: scaleInfo.name });
  }
  const scales = scalesOf(grid);
  reader.readInto(scaleInfo.name, new Uint8Array(scales.buffer));
  return { codes: reader.read(name), scales };
}
