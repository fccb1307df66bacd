/**
 * @file The gate's decision: which experts each token goes to, and with which routing weights; and
 * its gradient.
 *
 *     scores_TE = sigmoid(logits_TE)  or  softmax(logits_TE)
 *     choice_TK = top-K of scores + bias among the experts of the best groups (all others −∞)
 *     weight_TK = routedScale · scores[choice] / (Σ scores[choice] + 1e-20)
 *                 (undivided without `normalise`)
 *
 *   T tokens, E routed experts, K experts a token, G groups of E/G neighbouring experts
 *   bias_E    for the choice only: it never enters a weight and has no gradient
 *   plainChoice_TK   top-K of scores, for the balance loss
 *   A group's score is the sum of its two largest biased scores ("top2") or its largest ("max").
 *
 * Equal scores go to the lower index. A token with a NaN logit still gets K distinct experts (NaN
 * counts as −∞), so that the loss, not a crash, reports it. All targets run this one
 * implementation: it is a few operations a score. Source: DeepSeek-V3 report §2.1.2; masking by −∞
 * as in DeepSeek's own code.
 *
 * An output overlaps neither an input nor another output.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { isContiguous, type Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix } from "../door.ts";
import { slotIndex } from "../kernel.ts";

export const ROUTE_SLOTS = [
  "tokens",
  "experts",
  "chosen",
  "groups",
  "chosenGroups",
  "softmax",
  "groupByMax",
  "normalise",
  "routedScale",
  "logits",
  "bias",
  "scores",
  "choice",
  "weight",
  /** 0: nobody asks for it. */
  "plainChoice",
] as const;
export const ROUTE_AT: Record<(typeof ROUTE_SLOTS)[number], number> = slotIndex(ROUTE_SLOTS);

export const ROUTE_BACKWARD_SLOTS = [
  "tokens",
  "experts",
  "chosen",
  "softmax",
  "normalise",
  "routedScale",
  "tokensPerSequence",
  "scores",
  "choice",
  "dWeight",
  "balance",
  "dLogits",
] as const;
export const ROUTE_BACKWARD_AT: Record<(typeof ROUTE_BACKWARD_SLOTS)[number], number> =
  slotIndex(ROUTE_BACKWARD_SLOTS);

/** Tokens a task takes. */
export const ROUTE_TOKENS_PER_TASK = 256;

/** How experts are chosen and weighted. */
export interface RoutingRule {
  readonly numExperts: number;
  readonly numChosen: number;
  readonly scoring: "sigmoid" | "softmax";
  readonly numGroups: number;
  readonly numChosenGroups: number;
  readonly groupScore: "top2" | "max";
  readonly normalise: boolean;
  readonly routedScale: number;
}

export interface RouteCall {
  readonly rule: RoutingRule;
  readonly logits: Tensor<FloatType>;
  readonly bias: Tensor<FloatType>;
  readonly scores: Tensor<FloatType>;
  readonly choice: Tensor<"i32">;
  readonly weight: Tensor<FloatType>;
  /** The choice that the scores alone would make: without bias, without groups. */
  readonly plainChoice?: Tensor<"i32"> | undefined;
}

export interface RouteBackwardCall {
  readonly rule: RoutingRule;
  readonly scores: Tensor<FloatType>;
  readonly choice: Tensor<"i32">;
  readonly dWeight: Tensor<FloatType>;
  /**
   * Gradient of the sequence-wise balance loss with respect to each expert's normalised score, one
   * row a sequence [sequences, E]: α f_i ÷ tokens of a sequence. See `sequenceBalance`.
   */
  readonly balance?: Tensor<FloatType>;
  readonly dLogits: Tensor<FloatType>;
}

function assertRule(rule: RoutingRule): void {
  const { numExperts, numChosen, numGroups, numChosenGroups } = rule;
  assert(
    numExperts % numGroups === 0,
    `route: ${numGroups} groups must divide ${numExperts} experts`,
  );
  assert(
    numChosenGroups >= 1 && numChosenGroups <= numGroups,
    `route: chosen groups (${numChosenGroups}) must be 1..${numGroups}`,
  );
  const reachable = (numExperts / numGroups) * numChosenGroups;
  assert(
    numChosen >= 1 && numChosen <= reachable,
    `route: experts a token (${numChosen}) must be 1..${reachable}, those of the chosen groups`,
  );
}

/** Choose experts. Writes the scores (kept for backward), the choice and the routing weights. */
export function route(device: Device, call: RouteCall): void {
  const { rule, logits, bias, scores, choice, weight, plainChoice } = call;
  assertRule(rule);
  const tokens = logits.rows;
  const dtypes = [logits.dtype];
  assertMatrix(device, "route logits", logits, dtypes, tokens, rule.numExperts);
  assertMatrix(device, "route bias", bias, dtypes, 1, rule.numExperts);
  assertMatrix(device, "route scores", scores, dtypes, tokens, rule.numExperts);
  assertMatrix(device, "route weight", weight, dtypes, tokens, rule.numChosen);
  const choices = plainChoice === undefined ? [choice] : [choice, plainChoice];
  for (const tensor of choices) {
    assertMatrix(device, "route choice", tensor, ["i32"], tokens, rule.numChosen);
  }
  for (const tensor of [logits, scores, weight, ...choices]) {
    assert(isContiguous(tensor), "route: operands are contiguous");
  }
  device.launch(
    `route/${logits.dtype}`,
    [
      tokens,
      rule.numExperts,
      rule.numChosen,
      rule.numGroups,
      rule.numChosenGroups,
      rule.scoring === "softmax" ? 1 : 0,
      rule.groupScore === "max" ? 1 : 0,
      rule.normalise ? 1 : 0,
      rule.routedScale,
      logits.byteOffset,
      bias.byteOffset,
      scores.byteOffset,
      choice.byteOffset,
      weight.byteOffset,
      plainChoice?.byteOffset ?? 0,
    ],
    ceilDiv(tokens, ROUTE_TOKENS_PER_TASK),
  );
}

/**
 * Gradient of the logits from the gradient of the routing weights (and of the balance loss).
 * Overwrites dLogits.
 */
export function routeBackward(device: Device, call: RouteBackwardCall): void {
  const { rule, scores, choice, dWeight, balance, dLogits } = call;
  assertRule(rule);
  const tokens = scores.rows;
  const dtypes = [scores.dtype];
  assertMatrix(device, "routeBackward scores", scores, dtypes, tokens, rule.numExperts);
  assertMatrix(device, "routeBackward choice", choice, ["i32"], tokens, rule.numChosen);
  assertMatrix(device, "routeBackward dWeight", dWeight, dtypes, tokens, rule.numChosen);
  assertMatrix(device, "routeBackward dLogits", dLogits, dtypes, tokens, rule.numExperts);
  for (const tensor of [scores, choice, dWeight, dLogits]) {
    assert(isContiguous(tensor), "routeBackward: operands are contiguous");
  }
  assertIndexes("routeBackward choice", choice, 0, rule.numExperts);
  if (balance !== undefined) {
    assertMatrix(device, "routeBackward balance", balance, dtypes, balance.rows, rule.numExperts);
    assert(isContiguous(balance) && tokens % balance.rows === 0, "routeBackward: balance rows");
  }
  device.launch(
    `routeBackward/${scores.dtype}`,
    [
      tokens,
      rule.numExperts,
      rule.numChosen,
      rule.scoring === "softmax" ? 1 : 0,
      rule.normalise ? 1 : 0,
      rule.routedScale,
      balance === undefined ? 0 : tokens / balance.rows,
      scores.byteOffset,
      choice.byteOffset,
      dWeight.byteOffset,
      balance?.byteOffset ?? 0,
      dLogits.byteOffset,
    ],
    ceilDiv(tokens, ROUTE_TOKENS_PER_TASK),
  );
}
