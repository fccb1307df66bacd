/**
 * @file One rank's share of the routed experts: which it holds, and how tokens get to the others.
 */
import { OperationalError } from "../base/errors.ts";
import type { Communicator } from "../parallel/communicator/communicator.ts";
import { ExpertExchange } from "../parallel/expert/exchange/expert-exchange.ts";
import type { ModelConfig } from "./config.ts";

export interface ExpertShare {
  readonly exchange: ExpertExchange;
  /** The expert in each place of this rank, of every layer at the start. */
  readonly held: readonly number[];
}

/** Collective over the ranks: as many experts on each, in order. `ranksPerHost` divides them. */
export function shareExperts(
  ranks: Communicator,
  { numRoutedExperts }: Pick<ModelConfig, "numRoutedExperts">,
  { ranksPerHost }: { readonly ranksPerHost: number },
): ExpertShare {
  const numHeld = numRoutedExperts / ranks.size;
  if (!Number.isInteger(numHeld) || numHeld === 0) {
    throw new OperationalError(
      "parallel.experts",
      `${numRoutedExperts} routed experts do not divide over ${ranks.size} expert ranks; ` +
        "take a number of ranks that divides them",
    );
  }
  const exchange = new ExpertExchange(ranks, { numExperts: numRoutedExperts, ranksPerHost });
  const first = ranks.rank * numHeld;
  return { exchange, held: Array.from({ length: numHeld }, (_, place) => first + place) };
}
