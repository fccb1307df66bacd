/**
 * @file The tensors of a training's state by name: parameters, moments, average, routing biases.
 *
 *     master.NAME, firstMoment.NAME, secondMoment.NAME, average.NAME, routingBias.LAYER
 *
 * A rank has those of the parameters it moves; in one process that is all of them.
 */
import { assert } from "../../base/errors.ts";
import type { GateBias } from "../../model/model-types.ts";
import { spanNameOf } from "../../model/parameter-layout.ts";
import type { DType } from "../../tensor/dtype.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { elementCount, isContiguous, reshape, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import type { Trainer } from "../trainer.ts";

/** A tensor of the state, wherever it lies. */
export interface StateTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Its bytes; good until the next call. */
  read(): Uint8Array;
  /** Overwritten by what `read` puts into the bytes that it is given. */
  fill(read: (target: Uint8Array) => void): void;
}

export interface NamedTensor {
  readonly name: string;
  readonly tensor: Tensor;
}

/** What this rank keeps. Waits for the average. */
export function ownTensors(trainer: Trainer): readonly NamedTensor[] {
  const { average, optimizer, part } = trainer;
  average?.finish();
  const states = average === undefined ? optimizer.state : [...optimizer.state, average.state];
  for (const { parameter, numElements } of part.pieces) {
    assert(numElements === elementCount(parameter.value), `${parameter.name} is in parts`);
  }
  return [
    ...part.pieces.map(({ parameter: { name, value } }) => ({
      name: `master.${name}`,
      tensor: value,
    })),
    ...states.flatMap((state) =>
      part.pieces.map(({ parameter, place, numElements }) => {
        const flat = flatSlice(state[spanNameOf(parameter)], place, numElements);
        const tensor = reshape(flat, parameter.shape);
        return { name: `${state.kind}.${parameter.name}`, tensor };
      }),
    ),
    ...biasTensors(trainer.model),
  ];
}

/** The routing biases held here. */
export function biasTensors(model: {
  readonly gateBiases: readonly GateBias[];
}): readonly NamedTensor[] {
  return model.gateBiases.map(({ layerIndex, bias }) => ({
    name: `routingBias.${layerIndex}`,
    tensor: bias,
  }));
}

/** The tensor's own memory. */
export function bytesOf(tensor: Tensor): Uint8Array {
  assert(isContiguous(tensor), "state lies in contiguous tensors");
  const elements = view(tensor);
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength);
}

/** A tensor of this rank as one of the state. */
export function stateTensor({ name, tensor }: NamedTensor): StateTensor {
  const { dtype, shape } = tensor;
  return { name, dtype, shape, read: () => bytesOf(tensor), fill: (read) => read(bytesOf(tensor)) };
}
