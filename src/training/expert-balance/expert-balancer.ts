/**
 * @file Balance of expert ranks while training: loads are recorded, and between steps experts move
 * and get copies where the load is expected, with everything that belongs to them.
 *
 *     load history ─▶ placement (EPLB) ─▶ fewest moves ─▶ values, moments and average copied
 *
 * It changes where an expert is computed and nothing else, so losses stay what they were but for
 * the order of sums. All ranks see the same loads and come to the same plan. A layer whose busiest
 * rank would gain less than `leastGain` stays as it is. The step waits for the copies alone. In a
 * pipeline every rank makes the plans of all layers, and moves what it moves by its optimizer.
 * Source: DeepSeek-V3 report §3.4.
 */
import { assert, defined, OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { type ExpertLayer, type ExpertModel, ownExpertLayers } from "../../model/expert-layers.ts";
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
import { type Placement, placementFrom } from "../../parallel/expert/placement/place-experts.ts";
import { type ExpertMove, movesBetween } from "../../parallel/expert/placement/plan-moves.ts";
import { planRebalance } from "../../parallel/expert/placement/plan-rebalance.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { ElementRange } from "../../tensor/flat-slice.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { TrainingSettings } from "../settings.ts";
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

/** What has to be kept of it, to go on to the same bits; plain JSON, MoE layer by MoE layer. */
export interface ExpertsState {
  /** That share the experts. */
  readonly numRanks: number;
  /** What is remembered of the loads, the oldest first. */
  readonly loads: readonly (readonly (readonly number[])[])[];
  /** The places of each expert. */
  readonly places: readonly (readonly (readonly number[])[])[];
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

export interface BalancerParts {
  readonly places: StatePlaces;
  readonly scratch: Arena;
  /** Collective: gives values that have moved to ranks that have copies of them. */
  spreadValues(): void;
}

export class ExpertBalancer {
  readonly #share: ExpertShare;
  readonly #model: ExpertModel;
  readonly #options: BalanceOptions;
  readonly #parts: BalancerParts;
  /** What this rank moves. */
  readonly #layers: readonly ExpertLayer[];
  readonly #histories: readonly ExpertLoadHistory[];

  constructor(
    share: ExpertShare,
    model: ExpertModel,
    options: BalanceOptions,
    parts: BalancerParts,
  ) {
    this.#share = share;
    this.#model = model;
    this.#options = options;
    this.#parts = parts;
    this.#layers = ownExpertLayers(model);
    this.#histories = model.moeLayerIndices.map(
      () => new ExpertLoadHistory(model.config.numRoutedExperts, options.history),
    );
  }

  get state(): ExpertsState {
    return {
      numRanks: this.#share.ranks.size,
      loads: this.#histories.map(({ remembered }) => remembered.map((load) => [...load])),
      places: this.#model.moeLayerIndices.map(
        (layerIndex) => this.#share.layer(layerIndex).current.logicalToPhysical,
      ),
    };
  }

  /**
   * Collective: loads are remembered, and experts move to where they were, if that was over as many
   * ranks and places as there are; `states` as in `follow`.
   */
  restore({ numRanks, loads, places }: ExpertsState, states: () => readonly Tensor[]): void {
    for (const [order, history] of this.#histories.entries()) history.recall(loads[order]!);
    const { ranks, shape } = this.#share;
    if (numRanks !== ranks.size || places[0]?.flat().length !== shape.numPhysicalExperts) return;
    const tensors = states();
    const numMoves = this.#model.moeLayerIndices.map((layerIndex, order) => {
      const placement = placementFrom(places[order]!);
      const { current } = this.#share.layer(layerIndex);
      const moves = movesBetween(current, placement.physicalToLogical, shape);
      this.#move(layerIndex, { placement, moves }, tensors);
      return moves.length;
    });
    if (numMoves.some((count) => count > 0)) this.#afterMoves();
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
    const balances = this.#model.moeLayerIndices.map((layerIndex, order): LayerBalance => {
      const load = defined(this.#histories[order], "a history").estimate();
      const { current } = this.#share.layer(layerIndex);
      const plan = planRebalance(current, load, this.#share.shape, this.#options.leastGain);
      this.#move(layerIndex, plan, tensors);
      const { before, after, moves } = plan;
      return { layerIndex, before, after, numMoves: moves.length };
    });
    if (balances.some(({ numMoves }) => numMoves > 0)) this.#afterMoves();
    return balances;
  }

  #move(
    layerIndex: number,
    { placement, moves }: { readonly placement: Placement; readonly moves: readonly ExpertMove[] },
    states: readonly Tensor[],
  ): void {
    const layer = this.#layers.find((own) => own.layerIndex === layerIndex);
    if (layer !== undefined && moves.length > 0) this.#apply(layer, moves, states);
    this.#share.layer(layerIndex).replace(placement);
  }

  #afterMoves(): void {
    this.#parts.spreadValues();
    this.#model.parameters.refreshCompute();
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
    const { places, scratch } = this.#parts;
    copyElements(whole, copies, scratch);
    const { replicas: communicator, dp, parts } = places;
    const rankOf = (index: number, owner: number): number => index * ranks.size + owner;
    for (const mine of states) {
      copyElements({ communicator, parts, rankOf, mine, part: dp.rank }, copies, scratch);
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

/**
 * Refuse moments whose rounding depends on where they stand: copies of an expert would part. Muon
 * rounds those of experts to the nearest.
 */
export function checkMoments({
  recipe,
  optimizer,
}: Pick<TrainingSettings, "recipe" | "optimizer">): void {
  const isRounded = recipe.tensors.moment.format === "bf16";
  if (optimizer.name === "muon" || !isRounded || !recipe.stochasticRounding) return;
  throw new OperationalError(
    "config.value",
    "moments that are rounded at random would make the copies of redundant experts differ; " +
      "set recipe.stochasticRounding=false, or take no redundant experts",
  );
}
