/**
 * @file Where the tensors of a training's state lie among its ranks, from what each has told that
 * it holds.
 *
 * The list is that of one process, in its order. What several ranks hold is the same on all; the
 * first of them is asked for it.
 */
import { assert } from "../../base/errors.ts";
import type { ModelConfig } from "../../model/config.ts";
import { declareBuffers, declareParameters } from "../../model/parameter-declarations.ts";
import type { DType } from "../../tensor/dtype.ts";
import type { StateSpans } from "../spans.ts";
import type { HeldPiece } from "./held-state.ts";

export interface PlacedPiece extends HeldPiece {
  readonly rank: number;
  /** The rank's own number of it. */
  readonly number: number;
}

export interface PlacedTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Pieces that make the tensor, each once and in order. */
  readonly sources: readonly PlacedPiece[];
  /** All pieces of it that there are. */
  readonly holders: readonly PlacedPiece[];
}

/** `held` is what each rank holds, `states` are those of any rank. */
export function placeState(
  config: ModelConfig,
  states: readonly StateSpans[],
  held: readonly (readonly HeldPiece[])[],
): readonly PlacedTensor[] {
  const byName = new Map<string, PlacedPiece[]>();
  for (const [rank, pieces] of held.entries()) {
    for (const [number, piece] of pieces.entries()) {
      const known = byName.get(piece.name) ?? [];
      byName.set(piece.name, [...known, { ...piece, rank, number }]);
    }
  }
  const place = (name: string, dtype: DType, shape: readonly number[]): PlacedTensor => {
    const holders = byName.get(name) ?? [];
    return { name, dtype, shape, sources: coveringOf(name, shape, holders), holders };
  };
  const declarations = declareParameters(config);
  return [
    ...declarations.map(({ name, shape }) => place(`master.${name}`, "f32", shape)),
    ...states.flatMap(({ kind, decayed: { dtype } }) =>
      declarations.map(({ name, shape }) => place(`${kind}.${name}`, dtype, shape)),
    ),
    ...declareBuffers(config).map(({ layerIndex, numElements }) =>
      place(`routingBias.${layerIndex}`, "f32", [1, numElements]),
    ),
  ];
}

/** Pieces that follow each other from the first element to the last. */
function coveringOf(
  name: string,
  shape: readonly number[],
  holders: readonly PlacedPiece[],
): readonly PlacedPiece[] {
  const length = shape.reduce((product, dimension) => product * dimension, 1);
  const sources: PlacedPiece[] = [];
  let end = 0;
  while (end < length) {
    const next = holders.find(({ start }) => start === end);
    assert(next !== undefined && next.numElements > 0, `${name}: no rank holds element ${end}`);
    sources.push(next);
    end += next.numElements;
  }
  assert(end === length, `${name}: ${end} elements of ${length}`);
  return sources;
}
