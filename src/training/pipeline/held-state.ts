/**
 * @file What one rank holds of a training's state, piece by piece.
 *
 * A tensor of the state is in pieces: routed experts over the ranks that share them, moments and
 * average over those that move a parameter together. Values and routing biases are on every rank
 * that reads them. Experts stand in their order, which copies of them would not.
 */
import { assert, defined } from "../../base/errors.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import { spanNameOf } from "../../model/parameter-layout.ts";
import type { Parameter } from "../../model/parameters.ts";
import type { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { elementCount, reshape, type Tensor } from "../../tensor/tensor.ts";
import { biasTensors } from "../run/state-tensors.ts";
import type { StateSpans } from "../spans.ts";
import type { Trainer } from "../trainer.ts";

/** Elements of a tensor of the state, from `start` on. */
export interface HeldPiece {
  readonly name: string;
  readonly start: number;
  readonly numElements: number;
}

export class HeldState {
  /** The number of a piece is its place in this list. */
  readonly pieces: readonly HeldPiece[];
  readonly #tensors: readonly Tensor[];
  readonly #trainer: Trainer;

  constructor(model: PipelineModel, trainer: Trainer, experts: ExpertShare | null) {
    assert(experts?.hasCopies !== true, "every expert is once in the state");
    this.#trainer = trainer;
    /** Where this rank's part of a parameter begins in the model's. */
    const first = ({ role, shape }: Parameter): number =>
      role === "experts" ? (experts?.ranks.rank ?? 0) * shape[0] * shape[1] : 0;
    const held = [
      ...model.part.parameters.list.map((parameter) => ({
        name: `master.${parameter.name}`,
        start: first(parameter),
        tensor: parameter.value,
      })),
      ...statesOf(trainer).flatMap((state) =>
        trainer.part.pieces.map(({ parameter, start, numElements, place }) => ({
          name: `${state.kind}.${parameter.name}`,
          start: first(parameter) + start,
          tensor: flatSlice(state[spanNameOf(parameter)], place, numElements),
        })),
      ),
      ...biasTensors(model.part).map(({ name, tensor }) => ({ name, start: 0, tensor })),
    ];
    this.pieces = held.map(({ name, start, tensor }) => {
      return { name, start, numElements: elementCount(tensor) };
    });
    this.#tensors = held.map(({ tensor }) => reshape(tensor, [1, elementCount(tensor)]));
  }

  /** A piece by its number, as one row of this rank's memory. Waits for the average. */
  tensor(number: number): Tensor {
    this.#trainer.average?.finish();
    return defined(this.#tensors[number], `a piece of number ${number}`);
  }
}

/** The optimizer's, and the average. */
export function statesOf({ optimizer, average }: Trainer): readonly StateSpans[] {
  return average === undefined ? optimizer.state : [...optimizer.state, average.state];
}
