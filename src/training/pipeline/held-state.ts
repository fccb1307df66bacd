/**
 * @file What one rank holds of a training's state, piece by piece.
 *
 * A tensor of the state is in pieces: routed experts over the ranks that share them, moments and
 * average over those that move a parameter together. Values and routing biases are on every rank
 * that reads them. Where ranks share experts, each expert is a piece by itself, for it may be
 * anywhere, and a copy of it elsewhere; when experts have moved the pieces are others.
 */
import { defined } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { expertLayers } from "../../model/expert-layers.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import { spanNameOf } from "../../model/parameter-layout.ts";
import type { Parameter } from "../../model/parameters.ts";
import type { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { elementCount, reshape, type Tensor } from "../../tensor/tensor.ts";
import { elementsOfExpert } from "../expert-balance/expert-copies.ts";
import { biasTensors } from "../run/state-tensors.ts";
import type { StateSpans } from "../spans.ts";
import type { Trainer } from "../trainer.ts";

/** Elements of a tensor of the state, from `start` on. */
export interface HeldPiece {
  readonly name: string;
  readonly start: number;
  readonly numElements: number;
}

/** Elements that lie together, here and in the model. */
interface Run {
  /** In the model's parameter. */
  readonly start: number;
  /** After the first of those asked for. */
  readonly offset: number;
  readonly numElements: number;
}

interface Held extends HeldPiece {
  /** One row of this rank's memory. */
  readonly tensor: Tensor;
}

export class HeldState {
  readonly #model: PipelineModel;
  readonly #trainer: Trainer;
  readonly #experts: ExpertShare | null;
  /** The layer of each parameter of routed experts. */
  readonly #layerOf: ReadonlyMap<Parameter, number>;
  #held: readonly Held[];

  constructor(model: PipelineModel, trainer: Trainer, experts: ExpertShare | null) {
    this.#model = model;
    this.#trainer = trainer;
    this.#experts = experts;
    const { config, moeLayerIndices, part } = model;
    const layers = expertLayers({ config, moeLayerIndices, parameters: part.parameters });
    this.#layerOf = new Map(
      layers.flatMap(({ layerIndex, parameters }) =>
        parameters.map((parameter) => [parameter, layerIndex] as const),
      ),
    );
    this.#held = this.#list();
  }

  /** The number of a piece is its place in this list. */
  get pieces(): readonly HeldPiece[] {
    return this.#held.map(({ name, start, numElements }) => ({ name, start, numElements }));
  }

  /** Experts have moved: from here on pieces are those of where they are now. */
  refresh(): void {
    this.#held = this.#list();
  }

  /** A piece by its number, as one row of this rank's memory. Waits for the average. */
  tensor(number: number): Tensor {
    this.#trainer.average?.finish();
    return defined(this.#held[number], `a piece of number ${number}`).tensor;
  }

  #list(): Held[] {
    const { part } = this.#model;
    const { part: moved } = this.#trainer;
    const values = part.parameters.list.flatMap((parameter) =>
      this.#runs(parameter, 0, elementCount(parameter.value)).map(
        ({ start, offset, numElements }): Held => {
          const tensor = flatSlice(parameter.value, offset, numElements);
          return { name: `master.${parameter.name}`, start, numElements, tensor };
        },
      ),
    );
    const states = statesOf(this.#trainer).flatMap((state) =>
      moved.pieces.flatMap(({ parameter, place, ...piece }) =>
        this.#runs(parameter, piece.start, piece.numElements).map(
          ({ start, offset, numElements }): Held => {
            const span = state[spanNameOf(parameter)];
            const tensor = flatSlice(span, place + offset, numElements);
            return { name: `${state.kind}.${parameter.name}`, start, numElements, tensor };
          },
        ),
      ),
    );
    const biases = biasTensors(part).map(({ name, tensor }): Held => {
      const numElements = elementCount(tensor);
      return { name, start: 0, numElements, tensor: reshape(tensor, [1, numElements]) };
    });
    return [...values, ...states, ...biases];
  }

  /** Where elements of this rank's part of a parameter, from `first` on, lie in the model's. */
  #runs(parameter: Parameter, first: number, numElements: number): Run[] {
    const layerIndex = this.#layerOf.get(parameter);
    if (this.#experts === null || layerIndex === undefined) {
      return [{ start: first, offset: 0, numElements }];
    }
    const { ranks, numHeld } = this.#experts;
    const { physicalToLogical } = this.#experts.layer(layerIndex).current;
    const each = elementsOfExpert(parameter);
    const end = first + numElements;
    const runs: Run[] = [];
    for (let at = first; at < end; ) {
      const held = floorDiv(at, each);
      const next = Math.min(end, (held + 1) * each);
      const expert = defined(physicalToLogical[ranks.rank * numHeld + held], "an expert");
      const start = expert * each + (at - held * each);
      runs.push({ start, offset: at - first, numElements: next - at });
      at = next;
    }
    return runs;
  }
}

/** The optimizer's, and the average. */
export function statesOf({ optimizer, average }: Trainer): readonly StateSpans[] {
  return average === undefined ? optimizer.state : [...optimizer.state, average.state];
}
