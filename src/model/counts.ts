/**
 * @file How many parameters a configuration has, by part, and how many a token uses. Nothing is
 * allocated.
 *
 * `main` and `mtp` add up to the parameters in memory. Embedding and head belong to the main model;
 * released checkpoints store them once more with each MTP module. `active` counts what one token of
 * the main model touches: K of the routed experts, all the rest, embedding and head included.
 */
import { divExact } from "../base/integers.ts";
import type { ModelConfig } from "./config.ts";
import { declareParameters } from "./parameter-declarations.ts";

export interface ParameterCounts {
  readonly total: number;
  readonly main: number;
  readonly mtp: number;
  readonly active: number;
  readonly embedding: number;
  /** 0 if tied to the embedding. */
  readonly head: number;
  readonly attention: number;
  /** Dense feed-forward networks. */
  readonly feedForward: number;
  readonly routedExperts: number;
  readonly sharedExperts: number;
  readonly gates: number;
  readonly norms: number;
}

/** Count parameters. Parts are those of the main model; they add up to `main`. */
export function countParameters(config: ModelConfig): ParameterCounts {
  const parts = {
    embedding: 0,
    head: 0,
    attention: 0,
    feedForward: 0,
    routedExperts: 0,
    sharedExperts: 0,
    gates: 0,
    norms: 0,
  };
  let mtp = 0;
  for (const { name, shape, role } of declareParameters(config)) {
    const count = shape[0] * shape[1];
    if (name.startsWith("mtp.")) mtp += count;
    else parts[partOf(name, role)] += count;
  }
  const main = Object.values(parts).reduce((sum, count) => sum + count, 0);
  const { numRoutedExperts, numExpertsPerToken } = config;
  const used =
    numRoutedExperts === 0
      ? 0
      : divExact(parts.routedExperts, numRoutedExperts) * numExpertsPerToken;
  return { total: main + mtp, main, mtp, active: main - parts.routedExperts + used, ...parts };
}

type Part = Exclude<keyof ParameterCounts, "total" | "main" | "mtp" | "active">;

function partOf(name: string, role: string): Part {
  if (role === "embedding" || role === "head") return role;
  if (role === "norm") return "norms";
  if (role === "gate") return "gates";
  if (role === "experts") return "routedExperts";
  if (name.includes(".sharedExperts.")) return "sharedExperts";
  return name.includes(".attention.") ? "attention" : "feedForward";
}
