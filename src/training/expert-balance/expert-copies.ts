/**
 * @file Experts that have several copies: their gradients are added up, so that all copies take the
 * same step and stay one expert; and each counts once in the gradient's norm.
 *
 * Sums run in the order of places, in f64, and are rounded once: every copy computes the same bits.
 * Optimizers must not make copies differ: rounding moments at random by their place would.
 */
import { assert } from "../../base/errors.ts";
import { divExact, floorDiv } from "../../base/integers.ts";
import { type ExpertLayer, type ExpertModel, ownExpertLayers } from "../../model/expert-layers.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { Parameter } from "../../model/parameters.ts";
import { reduceVectors } from "../../parallel/communicator/reduce.ts";
import type { Arena } from "../../tensor/arena.ts";
import { sliceRows, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import type { OptimizerPart, OptimizerPiece } from "../spans.ts";

export class ExpertCopies {
  readonly #share: ExpertShare;
  readonly #layers: readonly ExpertLayer[];
  readonly #scratch: Arena;

  constructor(share: ExpertShare, model: ExpertModel, scratch: Arena) {
    this.#share = share;
    this.#layers = ownExpertLayers(model);
    this.#scratch = scratch;
  }

  /** Collective over the ranks that share the experts: every copy has the sum of all copies'. */
  sumGradients(): void {
    for (const { layerIndex, parameters } of this.#layers) {
      const { logicalToPhysical } = this.#share.layer(layerIndex).current;
      for (const places of logicalToPhysical) {
        if (places.length === 1) continue;
        for (const parameter of parameters) this.#sum(parameter, places);
      }
    }
  }

  #sum(parameter: Parameter, places: readonly number[]): void {
    const { ranks, numHeld } = this.#share;
    const rankOf = (place: number): number => floorDiv(place, numHeld);
    const mine = places.filter((place) => rankOf(place) === ranks.rank);
    const holders = [...new Set(places.map(rankOf))];
    if (mine.length === 0) return;
    using _mark = this.#scratch.mark();
    const gradientOf = (place: number): Tensor =>
      expertRows(parameter, parameter.gradient, place % numHeld);
    const parts = places.map((place) =>
      rankOf(place) === ranks.rank ? gradientOf(place) : this.#like(gradientOf(mine[0]!)),
    );
    ranks
      .group(() => {
        for (const [index, place] of places.entries()) {
          const holder = rankOf(place);
          if (holder !== ranks.rank) ranks.receive(parts[index]!, holder);
          else for (const other of holders) if (other !== holder) ranks.send(parts[index]!, other);
        }
      })
      .wait();
    const [first, ...others] = mine.map(gradientOf);
    const { memory, dtype, rows, columns } = first!;
    const sources = parts.map(({ byteOffset }) => byteOffset);
    const out = first!.byteOffset;
    reduceVectors(memory, { dtype, count: rows * columns, sources, out, reduction: "sum" });
    for (const other of others) view(other).set(view(first!));
  }

  #like({ dtype, shape }: Tensor): Tensor {
    return this.#scratch.allocate(dtype, shape);
  }

  /** The pieces of a part without those of all copies but each expert's first. */
  countedPieces({ pieces }: OptimizerPart): readonly OptimizerPiece[] {
    return pieces.flatMap((piece) => {
      const { parameter } = piece;
      const layer = this.#layers.find(({ parameters }) => parameters.includes(parameter));
      return layer === undefined ? [piece] : this.#firstCopies(piece, layer.layerIndex);
    });
  }

  #firstCopies(piece: OptimizerPiece, layerIndex: number): OptimizerPiece[] {
    const { ranks, numHeld } = this.#share;
    const { physicalToLogical, logicalToPhysical } = this.#share.layer(layerIndex).current;
    const { parameter, start, numElements, place: element } = piece;
    const each = elementsOfExpert(parameter);
    const end = start + numElements;
    const counted: OptimizerPiece[] = [];
    for (let held = floorDiv(start, each); held * each < end; held++) {
      const place = ranks.rank * numHeld + held;
      if (logicalToPhysical[physicalToLogical[place]!]![0] !== place) continue;
      const from = Math.max(start, held * each);
      const to = Math.min(end, (held + 1) * each);
      const found = { start: from, numElements: to - from, place: element + from - start };
      counted.push({ parameter, ...found });
    }
    return counted;
  }
}

/** The rows of a stacked tensor that are of the expert in one of this rank's places. */
export function expertRows<T extends Tensor>(
  { numExperts }: Pick<Parameter, "numExperts">,
  stacked: T,
  held: number,
): T {
  assert(held < numExperts, `place ${held} of ${numExperts}`);
  const each = divExact(stacked.rows, numExperts);
  return sliceRows(stacked, held * each, (held + 1) * each) as T;
}

export function elementsOfExpert({ shape, numExperts }: Parameter): number {
  return divExact(shape[0], numExperts) * shape[1];
}
