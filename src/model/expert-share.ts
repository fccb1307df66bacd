/**
 * @file One rank's share of the routed experts: how tokens get to all of them, and where they are,
 * layer by layer.
 *
 * Each rank has equally many places. With redundant experts there are more places than experts: the
 * busiest have several copies, which bear its load together and are moved by one gradient.
 */
import { OperationalError } from "../base/errors.ts";
import type { Communicator } from "../parallel/communicator/communicator.ts";
import { ExpertExchange } from "../parallel/expert/exchange/expert-exchange.ts";
import { LivePlacement } from "../parallel/expert/placement/live-placement.ts";
import {
  type Placement,
  type PlacementShape,
  placeExperts,
  placementFrom,
  refuseShape,
} from "../parallel/expert/placement/place-experts.ts";
import type { ModelConfig } from "./config.ts";

export interface ShareOptions {
  readonly ranksPerHost: number;
  /** Places beyond one for each expert; none if left out. */
  readonly numRedundant?: number;
  /**
   * Whether results come back choice by choice, to be added in the order of the choices, and not
   * rank by rank: more bytes, and the bits of one process wherever an expert is. To infer alone;
   * false if left out.
   */
  readonly byChoice?: boolean;
  /** The one rank that has tokens; all may have some if left out. */
  readonly source?: number;
}

export class ExpertShare {
  /** The ranks that share the experts. */
  readonly ranks: Communicator;
  readonly exchange: ExpertExchange;
  readonly shape: PlacementShape;
  readonly byChoice: boolean;
  readonly #first: Placement;
  readonly #layers = new Map<number, LivePlacement>();

  /** Collective over the ranks. At the start an expert's load is thought to be like any other's. */
  constructor(ranks: Communicator, config: ModelConfig, options: ShareOptions) {
    const { numRoutedExperts } = config;
    const { ranksPerHost, numRedundant = 0, byChoice = false, source } = options;
    this.ranks = ranks;
    this.byChoice = byChoice;
    this.shape = placesOver(ranks.size, config, options);
    const numExperts = this.shape.numPhysicalExperts;
    this.exchange = new ExpertExchange(ranks, { numExperts, ranksPerHost, source });
    this.#first =
      numRedundant === 0
        ? placementFrom(Array.from({ length: numRoutedExperts }, (_, expert) => [expert]))
        : placeExperts(new Float64Array(numRoutedExperts).fill(1), this.shape);
  }

  /** Places of this rank. */
  get numHeld(): number {
    return this.shape.numPhysicalExperts / this.ranks.size;
  }

  /** The expert in each place of this rank, of every layer at the start. */
  get held(): readonly number[] {
    const first = this.ranks.rank * this.numHeld;
    return this.#first.physicalToLogical.slice(first, first + this.numHeld);
  }

  /** Whether experts have copies. */
  get hasCopies(): boolean {
    return this.shape.numPhysicalExperts > this.#first.replicaCounts.length;
  }

  /** Where the experts of a layer are. */
  layer(layerIndex: number): LivePlacement {
    const known = this.#layers.get(layerIndex);
    if (known !== undefined) return known;
    const made = new LivePlacement(this.#first);
    this.#layers.set(layerIndex, made);
    return made;
  }
}

/** The places of all ranks; refuses what does not divide. */
export function placesOver(
  numRanks: number,
  { numRoutedExperts, numExpertGroups }: ModelConfig,
  { ranksPerHost, numRedundant = 0 }: ShareOptions,
): PlacementShape {
  const shape = {
    numPhysicalExperts: numRoutedExperts + numRedundant,
    numGroups: numExpertGroups,
    numNodes: numRanks / ranksPerHost,
    numGpus: numRanks,
  };
  if (shape.numPhysicalExperts % numRanks !== 0) {
    const redundant = numRedundant === 0 ? "" : ` and ${numRedundant} redundant`;
    throw new OperationalError(
      "parallel.experts",
      `${numRoutedExperts} routed${redundant} experts do not divide over ${numRanks} expert ` +
        `ranks; take ${divisorsOf(shape.numPhysicalExperts).join(", ")} of them`,
    );
  }
  const refusal = refuseShape(shape, numRoutedExperts);
  if (refusal === null) return shape;
  throw new OperationalError("parallel.experts", `${numRanks} expert ranks: ${refusal}`);
}

function divisorsOf(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index + 1).filter(
    (divisor) => count % divisor === 0,
  );
}
