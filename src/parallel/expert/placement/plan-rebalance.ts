/**
 * @file Whether the experts of a layer should move: placed anew for the load that is expected, with
 * the fewest moves, if the busiest rank gains enough by it. Source: DeepSeek-V3 report §3.4.
 */
import {
  gpuLoads,
  imbalance,
  type Placement,
  type PlacementShape,
  placeExperts,
} from "./place-experts.ts";
import { type ExpertMove, planMoves } from "./plan-moves.ts";

export interface Rebalance {
  /** The current one where nothing moves. */
  readonly placement: Placement;
  readonly moves: readonly ExpertMove[];
  /** What ranks bear: the largest load over the mean. */
  readonly before: number;
  readonly after: number;
}

/** `leastGain`: the share of the busiest rank's load that moving must save. */
export function planRebalance(
  current: Placement,
  load: ArrayLike<number>,
  shape: PlacementShape,
  leastGain: number,
): Rebalance {
  const loadsOf = (placement: Placement): number[] => gpuLoads(placement, load, shape.numGpus);
  const { placement, moves } = planMoves(current, placeExperts(load, shape), shape);
  const [before, after] = [loadsOf(current), loadsOf(placement)];
  const gain = 1 - Math.max(...after) / Math.max(...before);
  if (gain >= leastGain) {
    return { placement, moves, before: imbalance(before), after: imbalance(after) };
  }
  const stays = imbalance(before);
  return { placement: current, moves: [], before: stays, after: stays };
}
