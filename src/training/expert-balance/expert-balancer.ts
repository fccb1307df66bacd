/**
 * @file Balance of expert ranks while training: loads are recorded, and between steps experts move
 * and get copies where the load is expected, with everything that belongs to them.
 *
 *     load history ─▶ placement (EPLB) ─▶ fewest moves ─▶ values, moments and average copied
 *
 * It changes where an expert is computed and nothing else, so losses stay what they were but for
 * the order of sums. All ranks see the same loads and come to the same plan. A layer whose busiest
 * rank would gain less than `leastGain` stays as it is. The step waits for the copies alone.
 * Source: DeepSeek-V3 report §3.4.
 */
import { assert, defined, OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { type ExpertLayer, type ExpertModel, expertLayers } from "../../model/expert-layers.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import {
  copyElements,
  type Divided,
  type ElementCopy,
} from "../../parallel/expert/placement/copy-elements.ts";
import {
  ExpertLoadHistory,
  type HistoryKind,
} from "../../parallel/expert/placement/load-history.ts";
import type { ExpertMove } from "../../parallel/expert/placement/plan-moves.ts";
import { planRebalance } from "../../parallel/expert/placement/plan-rebalance.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { ElementRange } from "../../tensor/flat-slice.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { elementOf } from "../spans.ts";
import { elementsOfExpert } from "./expert-copies.ts";

export interface BalanceOptions {
  readonly everySteps: number;
  readonly history: HistoryKind;
  /** The share of the busiest rank's load that a move must save. */
  readonly leastGain: number;
}

/** What a layer's ranks bear: the largest load over the mean, as the history has it. */
export interface LayerBalance {
  readonly layerIndex: number;
  readonly before: number;
  readonly after: number;
  readonly numMoves: number;
}

/** How moments and average lie over ranks, beside values that are whole on each. */
export interface StatePlaces {
  /** All ranks with the model's stage. */
  readonly replicas: Communicator;
  /** Those with the same experts. */
  readonly dp: Communicator;
  /** The part of the experts' span that each of these has. */
  readonly parts: readonly ElementRange[];
}

export class ExpertBalancer {
  readonly #share: ExpertShare;
  readonly #model: ExpertModel;
  readonly #options: BalanceOptions;
  readonly #places: StatePlaces;
  readonly #scratch: Arena;
  readonly #layers: readonly ExpertLayer[];
  readonly #histories: readonly ExpertLoadHistory[];

  constructor(
    share: ExpertShare,
    model: ExpertModel,
    options: BalanceOptions,
    { places, scratch }: { readonly places: StatePlaces; readonly scratch: Arena },
  ) {
    this.#share = share;
    this.#model = model;
    this.#options = options;
    this.#places = places;
    this.#scratch = scratch;
    this.#layers = expertLayers(model);
    this.#histories = model.moeLayerIndices.map(
      () => new ExpertLoadHistory(model.config.numRoutedExperts, options.history),
    );
  }

  /**
   * Collective, after step `step` with its loads in the order of the model's `moeLayerIndices`:
   * experts move if it is time; `states` are the tensors that lie as the experts' part does.
   */
  follow(
    step: number,
    expertLoad: readonly Int32Array[],
    states: () => readonly Tensor[],
  ): readonly LayerBalance[] {
    assert(expertLoad.length === this.#histories.length, "a load for each MoE layer");
    for (const [order, load] of expertLoad.entries()) this.#histories[order]!.record(load);
    if ((step + 1) % this.#options.everySteps !== 0) return [];
    const tensors = states();
    const balances = this.#layers.map((layer) => this.#rebalanceLayer(layer, tensors));
    if (balances.some(({ numMoves }) => numMoves > 0)) this.#model.parameters.refreshCompute();
    return balances;
  }

  #rebalanceLayer(layer: ExpertLayer, states: readonly Tensor[]): LayerBalance {
    const { shape } = this.#share;
    const { layerIndex } = layer;
    const order = this.#model.moeLayerIndices.indexOf(layerIndex);
    const load = defined(this.#histories[order], "a history").estimate();
    const live = this.#share.layer(layerIndex);
    const plan = planRebalance(live.current, load, shape, this.#options.leastGain);
    const { placement, moves, before, after } = plan;
    if (moves.length > 0) this.#apply(layer, moves, states);
    live.replace(placement);
    return { layerIndex, before, after, numMoves: moves.length };
  }

  /** Values lie whole on every rank; of the rest each has a part. */
  #apply(layer: ExpertLayer, moves: readonly ExpertMove[], states: readonly Tensor[]): void {
    const { ranks } = this.#share;
    const copies = layer.parameters.flatMap((parameter) => this.#copiesOf(parameter, moves));
    const values = this.#model.parameters.own.experts.values;
    const whole: Divided = {
      communicator: ranks,
      parts: [{ start: 0, end: values.columns }],
      rankOf: (_, owner) => owner,
      mine: values,
      part: 0,
    };
    copyElements(whole, copies, this.#scratch);
    const { replicas: communicator, dp, parts } = this.#places;
    const rankOf = (index: number, owner: number): number => index * ranks.size + owner;
    for (const mine of states) {
      copyElements({ communicator, parts, rankOf, mine, part: dp.rank }, copies, this.#scratch);
    }
  }

  #copiesOf(parameter: ExpertLayer["parameters"][number], moves: readonly ExpertMove[]) {
    const { numHeld } = this.#share;
    const first = elementOf(this.#model.parameters.own, parameter);
    const numElements = elementsOfExpert(parameter);
    const placeOf = (place: number) => ({
      owner: floorDiv(place, numHeld),
      element: first + (place % numHeld) * numElements,
    });
    return moves.map(
      ({ from, to }): ElementCopy => ({ from: placeOf(from), to: placeOf(to), numElements }),
    );
  }
}

/** Refuse moments whose rounding depends on where they stand: copies of an expert would part. */
export function checkMoments(share: ExpertShare, isStochastic: boolean): void {
  if (!isStochastic || !share.hasCopies) return;
  throw new OperationalError(
    "config.value",
    "moments that are rounded at random would make the copies of redundant experts differ; " +
      "set recipe.stochasticRounding=false, or take no redundant experts",
  );
}
