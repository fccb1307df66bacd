/** @file Where an optimizer's parameters may be cut into parts that different ranks move. */
import type { OwnParameters } from "../../model/parameters.ts";
import type { CutRule } from "../data-parallel/zero.ts";
import type { TrainingSettings } from "../settings.ts";
import { nearestRow } from "./adamw.ts";
import { nearestMatrix } from "./muon.ts";

/** AdamW: at rows of its kernels. Muon: between matrices. */
export function cutRuleOf(
  optimizer: TrainingSettings["optimizer"]["name"],
  parameters: OwnParameters,
): CutRule {
  if (optimizer !== "muon") return nearestRow;
  return (span, element) => nearestMatrix(parameters, span, element);
}
