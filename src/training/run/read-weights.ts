/**
 * @file Filling a model with a checkpoint's weights: master values, or what a model that is only to
 * infer keeps instead of them.
 *
 * Every name and shape is checked before anything is filled, and copies of shared tensors that
 * differ from their original are refused. One tensor of the checkpoint is in memory at a time.
 */
import { defined, OperationalError } from "../../base/errors.ts";
import { openCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
import { readWeightInto, scaleName } from "../../checkpoint/fp8-weights.ts";
import type { TensorInfo, TensorReader } from "../../checkpoint/tensors.ts";
import type { Model } from "../../model/model.ts";
import { checkTensorNames, type HuggingFaceTensor, huggingFaceTensors } from "../../model/names.ts";
import { fillRows } from "../../model/stored-parameters.ts";
import { viewAt } from "../../model/tensor-source.ts";

/** Fill a model with the published weights of a checkpoint of its configuration. */
export function readWeights(path: string, model: Model): void {
  using reader = openCheckpointTensors(path);
  const names = [...reader.tensors.keys()];
  const scales = new Set(names.map(scaleName));
  checkTensorNames(
    model.config,
    names.filter((name) => !scales.has(name)),
  );
  const tensors = huggingFaceTensors(model.config);
  const present = tensors.filter(({ name }) => reader.tensors.has(name));
  for (const tensor of present) checkShape(path, tensor, reader.tensors.get(tensor.name)!);
  for (const tensor of present) {
    if (tensor.presence === "required") fill(reader, tensor, model);
    else checkCopy(path, reader, tensor, originalOf(tensors, tensor));
  }
  model.parameters.refreshCompute();
}

function checkShape(path: string, tensor: HuggingFaceTensor, stored: TensorInfo): void {
  if (stored.shape.join() === tensor.shape.join()) return;
  throw new OperationalError(
    "checkpoint.shape",
    `${path}: ${tensor.name} has shape [${stored.shape.join(", ")}]; config.json wants ` +
      `[${tensor.shape.join(", ")}]`,
    { path, name: tensor.name },
  );
}

function fill(reader: TensorReader, { name, shape, place }: HuggingFaceTensor, model: Model): void {
  if (model.weights === null || place.kind === "gateBias") {
    readWeightInto(reader, name, viewAt(model, place));
    return;
  }
  const { parameter, rowStart } = place;
  fillRows(model.parameters.get(parameter), rowStart, readWeight(reader, { name, shape }));
}

function readWeight(
  reader: TensorReader,
  { name, shape }: Pick<HuggingFaceTensor, "name" | "shape">,
): Float32Array {
  const values = new Float32Array(shape.reduce((product, dimension) => product * dimension, 1));
  readWeightInto(reader, name, values);
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

function checkCopy(
  path: string,
  reader: TensorReader,
  tensor: HuggingFaceTensor,
  original: HuggingFaceTensor,
): void {
  const [copy, values] = [readWeight(reader, tensor), readWeight(reader, original)];
  const differs = copy.findIndex((value, index) => value !== values[index]);
  if (differs < 0) return;
  throw new OperationalError(
    "checkpoint.copy",
    `${path}: ${tensor.name} must equal the tensor it is a copy of, but differs at ` +
      `element ${differs}; this architecture shares the two`,
    { path, name: tensor.name },
  );
}
