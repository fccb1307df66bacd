/**
 * @file Where the tensors of a training's state lie among the ranks of a pipeline.
 *
 * Every rank makes the same table, in the order in which one process lists them, so that a number
 * names a tensor. Parameters and routing biases are held by one rank or two, the optimizer's state
 * and the average by the owner alone.
 */
import { defined } from "../../base/errors.ts";
import { declareBuffers, declareParameters } from "../../model/parameter-declarations.ts";
import type { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import { ranksOfLayer } from "../../model/pipeline/rank-layout.ts";
import type { DType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { biasTensors, ownTensors } from "../run/state-tensors.ts";
import type { Trainer } from "../trainer.ts";

export interface PlacedTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** The rank to ask for it. */
  readonly owner: number;
  readonly holders: readonly number[];
}

export interface StateTable {
  readonly all: readonly PlacedTensor[];
  /** This rank's memory of a tensor that it holds. */
  tensorOf(name: string): Tensor;
}

export function makeStateTable(model: PipelineModel, trainer: Trainer): StateTable {
  const { average, optimizer } = trainer;
  const states = average === undefined ? optimizer.state : [...optimizer.state, average.state];
  const declarations = declareParameters(model.config).map(({ name, shape }) => {
    const { owner, holders } = defined(model.layout.holdings.get(name), `the ranks of ${name}`);
    return { name, shape, owner, holders };
  });
  const all: readonly PlacedTensor[] = [
    ...declarations.map(({ name, ...placed }) => ({
      ...placed,
      name: `master.${name}`,
      dtype: "f32" as const,
    })),
    ...states.flatMap(({ kind, decayed: { dtype } }) =>
      declarations.map(({ name, shape, owner }) => ({
        name: `${kind}.${name}`,
        dtype,
        shape,
        owner,
        holders: [owner],
      })),
    ),
    ...declareBuffers(model.config).map(({ layerIndex, numElements }) => {
      const holders = ranksOfLayer(model.config, model.layout, layerIndex);
      const shape = [1, numElements];
      const owner = defined(holders[0], `the rank of layer ${layerIndex}`);
      return { name: `routingBias.${layerIndex}`, dtype: "f32" as const, shape, owner, holders };
    }),
  ];
  return { all, tensorOf: (name) => tensorOf(model, trainer, name) };
}

function tensorOf({ part }: PipelineModel, trainer: Trainer, name: string): Tensor {
  const own = [...ownTensors(trainer), ...biasTensors(part)].find((held) => held.name === name);
  return own?.tensor ?? part.parameters.get(name.slice("master.".length)).value;
}
