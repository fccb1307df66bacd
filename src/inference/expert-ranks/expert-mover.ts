/**
 * @file Experts of a model that only infers, moved between passes to where their load is borne
 * best.
 *
 * All ranks get the leader's loads and come to the same plan; what is kept of an expert (codes,
 * scales, bf16, or master values) is copied as it is, so it computes the same bits in its new
 * place.
 */
import { divExact, floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { type ExpertLayer, type ExpertModel, expertLayers } from "../../model/expert-layers.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import { copyElements } from "../../parallel/expert/placement/copy-elements.ts";
import type { ExpertMove } from "../../parallel/expert/placement/plan-moves.ts";
import { planRebalance } from "../../parallel/expert/placement/plan-rebalance.ts";
import { Arena } from "../../tensor/arena.ts";
import { elementCount, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { LEADER } from "./expert-orders.ts";

/** The share of the busiest rank's load that moving must save; by feel. */
const LEAST_GAIN = 0.02;

export class ExpertMover {
  readonly #share: ExpertShare;
  readonly #model: ExpertModel;
  /** The main model's: an MTP module's load is not counted, and its experts stay. */
  readonly #layers: readonly ExpertLayer[];
  readonly #scratch: Arena;

  constructor(share: ExpertShare, model: ExpertModel, memory: CpuMemory) {
    this.#share = share;
    this.#model = model;
    const { numLayers } = model.config;
    this.#layers = expertLayers(model).filter(({ layerIndex }) => layerIndex < numLayers);
    this.#scratch = new Arena(memory, "moving experts");
  }

  /** Collective: experts follow the loads, layer by layer, which the leader gives. */
  move(loads?: readonly Float64Array[]): { readonly numMoves: number } {
    const { ranks, shape } = this.#share;
    using _mark = this.#scratch.mark();
    const numExperts = this.#model.config.numRoutedExperts;
    const table = this.#scratch.allocate("f64", [this.#layers.length, numExperts]);
    for (const [order, load] of loads?.entries() ?? []) view(table).set(load, order * numExperts);
    ranks.broadcast(table, LEADER).wait();
    let numMoves = 0;
    for (const [order, layer] of this.#layers.entries()) {
      const load = view(table).slice(order * numExperts, (order + 1) * numExperts);
      const live = this.#share.layer(layer.layerIndex);
      const { placement, moves } = planRebalance(live.current, load, shape, LEAST_GAIN);
      for (const { stored } of layer.parameters) {
        for (const tensor of stored) this.#moveParts(tensor, moves);
      }
      live.replace(placement);
      numMoves += moves.length;
    }
    if (numMoves > 0) this.#model.parameters.refreshCompute();
    return { numMoves };
  }

  /** Equal parts of a tensor, one for each expert held here. */
  #moveParts(tensor: Tensor, moves: readonly ExpertMove[]): void {
    const { ranks, numHeld } = this.#share;
    const numElements = divExact(elementCount(tensor), numHeld);
    const placeOf = (place: number) => ({
      owner: floorDiv(place, numHeld),
      element: (place % numHeld) * numElements,
    });
    const whole = {
      communicator: ranks,
      parts: [{ start: 0, end: elementCount(tensor) }],
      rankOf: (_: number, owner: number) => owner,
      mine: tensor,
      part: 0,
    };
    const copies = moves.map(({ from, to }) => {
      return { from: placeOf(from), to: placeOf(to), numElements };
    });
    copyElements(whole, copies, this.#scratch);
  }
}
