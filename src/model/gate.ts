/**
 * @file The gate: affinity of every token to every routed expert, the choice, the routing weights;
 * and its gradient.
 *
 *     logits_TE = x_TD · W_EDᵀ;  choice and weights as kernels/route has them
 *     dX += dLogits · W,  dW += dLogitsᵀ · x              the choice itself has no gradient
 *
 * Operands of the product are in the compute type (bf16 in training), scores in the float type.
 * Saved: scores (E), choice and weight (K each). Which rule a configuration asks for:
 * `routingRule`. Source: DeepSeek-V3 report §2.1.2; V2 report §2.2 for softmax and for groups
 * scored by their best expert.
 */
import { type RoutingRule, route, routeBackward } from "../kernels/route/contract.ts";
import { sequenceBalance } from "../kernels/sequence-balance/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { BalanceLoss } from "./balance-loss.ts";
import type { ModelConfig } from "./config.ts";
import { Linear, type WriteMode } from "./linear.ts";
import { plainGradient } from "./operand.ts";
import type { ComputeType, Parameter } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";

export interface GateSaved {
  readonly scores: Tensor<FloatType>;
  readonly choice: Tensor<"i32">;
  readonly weight: Tensor<FloatType>;
  /** null if the pass has no balance loss. */
  readonly balance: BalanceLoss | null;
}

export interface GateBackward {
  readonly input: Tensor<ComputeType>;
  readonly dWeight: Tensor<FloatType>;
  readonly dInput: Tensor<FloatType>;
  readonly mode: WriteMode;
}

/** How experts are chosen and weighted under this configuration. */
export function routingRule(config: ModelConfig): RoutingRule {
  const grouped = config.topkMethod !== "greedy";
  return {
    numExperts: config.numRoutedExperts,
    numChosen: config.numExpertsPerToken,
    scoring: config.scoring,
    numGroups: grouped ? config.numExpertGroups : 1,
    numChosenGroups: grouped ? config.numChosenGroups : 1,
    groupScore: config.topkMethod === "noaux_tc" ? "top2" : "max",
    normalise: config.normTopkProb,
    routedScale: config.routedScalingFactor,
  };
}

export class Gate {
  readonly rule: RoutingRule;
  readonly linear: Linear;
  /** Added to the scores for the choice; zeros where the method has no bias. */
  readonly bias: Tensor<FloatType>;

  constructor(config: ModelConfig, weight: Parameter, bias: Tensor<FloatType>) {
    this.rule = routingRule(config);
    this.linear = new Linear(weight);
    this.bias = bias;
  }

  forward(pass: Pass, x: Tensor<ComputeType>): GateSaved {
    const { saved, scratch, floatType, device } = pass;
    const { rule, bias } = this;
    const scores = saved.allocate(floatType, [x.rows, rule.numExperts]);
    const choice = saved.allocate("i32", [x.rows, rule.numChosen]);
    const weight = saved.allocate(floatType, [x.rows, rule.numChosen]);
    const balance = pass.balanceScale === 0 ? null : this.#allocateBalance(pass);
    using _mark = scratch.mark();
    const logits = scratch.allocate(floatType, [x.rows, rule.numExperts]);
    this.linear.forward(pass, x, logits, "overwrite");
    const outputs = { scores, choice, weight };
    if (balance === null) {
      route(device, { rule, logits, bias, ...outputs });
    } else {
      const plainChoice = scratch.allocate("i32", [x.rows, rule.numChosen]);
      route(device, { rule, logits, bias, ...outputs, plainChoice });
      const scale = pass.balanceScale;
      sequenceBalance(device, { scores, choice: plainChoice, scale, ...balance });
    }
    return { ...outputs, balance };
  }

  backward(pass: Pass, state: GateSaved, { input, dWeight, dInput, mode }: GateBackward): void {
    const { scratch, floatType, device } = pass;
    const { scores, choice, balance } = state;
    using _mark = scratch.mark();
    const dLogits = scratch.allocate(floatType, [scores.rows, scores.columns]);
    const through = balance === null ? {} : { balance: balance.gradient };
    routeBackward(device, { rule: this.rule, scores, choice, dWeight, dLogits, ...through });
    const dOut = plainGradient(copyToCompute(pass, pass.weightGrads.arena, dLogits));
    this.linear.backward(pass, { input, dOut, dInput, mode });
  }

  #allocateBalance({ saved, floatType, numSequences }: Pass): BalanceLoss {
    const shape = [numSequences, this.rule.numExperts];
    return { terms: saved.allocate("f64", shape), gradient: saved.allocate(floatType, shape) };
  }
}

/** Tokens of this rank that chose each expert. */
export function expertLoadOf({ scores, choice }: GateSaved): Int32Array {
  const load = new Int32Array(scores.columns);
  for (const expert of view(choice)) load[expert]!++;
  return load;
}
