/**
 * @file Filling a model with a checkpoint's weights: master values, or what a model that is only to
 * infer keeps instead of them.
 *
 * Every name and shape is checked before anything is filled. Copies of shared tensors that differ
 * from their original are refused, and values that are not finite. One tensor of the checkpoint is
 * in memory at a time.
 * What the model does not hold, as a rank that shares the experts with others, is left out.
 * Codes go from a checkpoint into a model of the same format as they are; everything else goes
 * through values.
 */
import { defined, OperationalError } from "../../base/errors.ts";
import { openCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
import { finiteTensors } from "../../checkpoint/finite-tensors.ts";
import { readFp8Weight, readWeightInto, scaleName } from "../../checkpoint/fp8-weights.ts";
import { packedNames, readPackedRows } from "../../checkpoint/packed-integers.ts";
import type { TensorReader } from "../../checkpoint/tensors.ts";
import type { Model } from "../../model/model.ts";
import { checkTensorNames, type HuggingFaceTensor, huggingFaceTensors } from "../../model/names.ts";
import type { Parameter } from "../../model/parameters.ts";
import { fillCodes, fillFp8, fillRows } from "../../model/stored-parameters.ts";
import { viewAt } from "../../model/tensor-source.ts";
import type { WeightFormat } from "../../model/weight-format.ts";
import { dequantizeRow, type GroupRule, INTEGER_BITS } from "../../numerics/integer-groups.ts";

/** What is filled: a model, or what a rank holds of one. */
export type FilledModel = Pick<Model, "config" | "weights" | "parameters" | "gateBiases">;

/** Fill a model with the published weights of a checkpoint of its configuration. */
export function readWeights(path: string, model: FilledModel, stored: WeightFormat): void {
  using reader = finiteTensors(openCheckpointTensors(path));
  const source = { path, reader, stored };
  const tensors = huggingFaceTensors(model.config);
  checkTensorNames(model.config, storedNames(reader, tensors));
  const present = tensors.filter((tensor) => isStored(reader, tensor));
  for (const tensor of present) checkShape(source, tensor);
  for (const tensor of present) {
    if (tensor.presence === "required") fill(source, tensor, model);
    else checkCopy(source, tensor, originalOf(tensors, tensor));
  }
  model.parameters.refreshCompute();
}

interface Source {
  readonly path: string;
  readonly reader: TensorReader;
  /** What config.json says that the weights are stored in. */
  readonly stored: WeightFormat;
}

function isPacked(reader: TensorReader, { name }: Pick<HuggingFaceTensor, "name">): boolean {
  return reader.tensors.has(packedNames(name).packed);
}

function isStored(reader: TensorReader, tensor: HuggingFaceTensor): boolean {
  return reader.tensors.has(tensor.name) || isPacked(reader, tensor);
}

/** The names of weights, whatever tensors stand for them. */
function storedNames(reader: TensorReader, tensors: readonly HuggingFaceTensor[]): Set<string> {
  const names = new Set(reader.tensors.keys());
  for (const name of [...names]) names.delete(scaleName(name));
  for (const tensor of tensors.filter((candidate) => isPacked(reader, candidate))) {
    for (const part of Object.values(packedNames(tensor.name))) names.delete(part);
    names.add(tensor.name);
  }
  return names;
}

/** Shapes of plain and FP8 tensors; packed ones are checked while they are read. */
function checkShape({ path, reader }: Source, tensor: HuggingFaceTensor): void {
  const stored = reader.tensors.get(tensor.name);
  if (stored === undefined || stored.shape.join() === tensor.shape.join()) return;
  throw new OperationalError(
    "checkpoint.shape",
    `${path}: ${tensor.name} has shape [${stored.shape.join(", ")}]; config.json wants ` +
      `[${tensor.shape.join(", ")}]`,
    { path, name: tensor.name },
  );
}

function fill(source: Source, tensor: HuggingFaceTensor, model: FilledModel): void {
  const { place } = tensor;
  const { parameters, gateBiases } = model;
  if (place.kind === "gateBias") {
    if (gateBiases.length > 0) readValues(source, tensor, viewAt(model, place));
    return;
  }
  const numRows = place.rowEnd - place.rowStart;
  for (const rowStart of parameters.rowStartsOf(place.parameter, place.rowStart)) {
    if (model.weights === null) {
      const here = { ...place, rowStart, rowEnd: rowStart + numRows };
      readValues(source, tensor, viewAt(model, here));
      continue;
    }
    const parameter = parameters.get(place.parameter);
    if (fillWithCodes(source, tensor, parameter, rowStart)) continue;
    fillRows(parameter, rowStart, newValues(source, tensor));
  }
}

/** Codes as they are stored, if the parameter is kept in the same; whether it is. */
function fillWithCodes(
  source: Source,
  tensor: HuggingFaceTensor,
  parameter: Parameter,
  rowStart: number,
): boolean {
  const { reader } = source;
  const { coded } = parameter;
  if (coded === null) return false;
  if (coded.format === "e4m3") {
    if (reader.tensors.get(tensor.name)?.dtype !== "F8_E4M3") return false;
    fillFp8(parameter, rowStart, readFp8Weight(reader, tensor.name));
    return true;
  }
  if (!isPacked(reader, tensor)) return false;
  const rule = ruleOf(source, tensor);
  const isSame =
    coded.format === `int${rule.bits}` &&
    coded.groupSize === rule.groupSize &&
    coded.asymmetric === rule.asymmetric;
  if (!isSame) return false;
  let row = rowStart;
  for (const parts of readPackedRows(reader, tensor.name, matrixOf(tensor), rule)) {
    fillCodes(parameter, row++, parts);
  }
  return true;
}

/** A packed tensor's rule: groups as config.json has them, bits as its own shape says. */
function ruleOf({ path, reader, stored }: Source, tensor: HuggingFaceTensor): GroupRule {
  const { packed } = packedNames(tensor.name);
  const words = reader.tensors.get(packed)?.shape[1];
  const { columns } = matrixOf(tensor);
  const bits = INTEGER_BITS.find((count) => words === Math.ceil((columns * count) / 32));
  if (typeof stored !== "string" && bits !== undefined) return { ...stored, bits };
  throw new OperationalError(
    "checkpoint.unsupported",
    `${path}: ${packed} is not what config.json's quantization_config describes`,
    { path, name: packed },
  );
}

function matrixOf({ shape }: HuggingFaceTensor): { rows: number; columns: number } {
  return { rows: defined(shape[0], "rows"), columns: defined(shape[1], "columns") };
}

/** The values of a tensor, whatever it is stored as. */
function readValues(source: Source, tensor: HuggingFaceTensor, out: Float32Array): void {
  const { reader } = source;
  if (!isPacked(reader, tensor)) {
    readWeightInto(reader, tensor.name, out);
    return;
  }
  const rule = ruleOf(source, tensor);
  const shape = matrixOf(tensor);
  let at = 0;
  for (const row of readPackedRows(reader, tensor.name, shape, rule)) {
    dequantizeRow(row, rule.groupSize, out.subarray(at, at + shape.columns));
    at += shape.columns;
  }
}

function newValues(source: Source, tensor: HuggingFaceTensor): Float32Array {
  const count = tensor.shape.reduce((product, dimension) => product * dimension, 1);
  const values = new Float32Array(count);
  readValues(source, tensor, values);
  return values;
}

/** The tensor that another one is a copy of. */
function originalOf(
  tensors: readonly HuggingFaceTensor[],
  { name, place }: HuggingFaceTensor,
): HuggingFaceTensor {
  const rows = JSON.stringify(place);
  const original = tensors.find(
    (other) => other.presence === "required" && JSON.stringify(other.place) === rows,
  );
  return defined(original, `the original of ${name}`);
}

function checkCopy(source: Source, tensor: HuggingFaceTensor, original: HuggingFaceTensor): void {
  const [copy, values] = [newValues(source, tensor), newValues(source, original)];
  const differs = copy.findIndex((value, index) => value !== values[index]);
  if (differs < 0) return;
  const { path } = source;
  throw new OperationalError(
    "checkpoint.copy",
    `${path}: ${tensor.name} must equal the tensor it is a copy of, but differs at ` +
      `element ${differs}; this architecture shares the two`,
    { path, name: tensor.name },
  );
}
