/**
 * @file The sequence-wise balance loss of one MoE layer.
 *
 *     L   = mean over the sequences of Σ_i f_i · P_i
 *     f_i = E / (K · S) · Σ_t [i ∈ TopK(s_t)]        share of the choices; no gradient
 *     P_i = 1 / S · Σ_t s_ti / Σ_j s_tj
 *     ∂L/∂(s_ti / Σ_j s_tj) = f_i / (S · numSequences)   what routeBackward takes as `balance`
 *
 *   S tokens of a sequence, E experts, K chosen, s the scores without bias
 *
 * TopK is that of the plain scores, as the report prints it: no bias, no groups. L is 1 if all is
 * even. Source: DeepSeek-V3 report §2.1.2 (α multiplies L; see StepOptions.balanceWeight).
 */
import type { RoutingRule } from "../kernels/route/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { Pass } from "./pass.ts";

export interface BalanceLoss {
  /** L, unweighted. */
  readonly loss: number;
  /** balanceScale · ∂L/∂(normalised score), [numSequences, E]. */
  readonly gradient: Tensor<FloatType>;
}

export interface SequenceBalanceCall {
  readonly rule: RoutingRule;
  readonly scores: Tensor<FloatType>;
  /** The choice that the scores alone would make. */
  readonly plainChoice: Tensor<"i32">;
  /** Where the gradient goes, [numSequences, E]. */
  readonly gradient: Tensor<FloatType>;
}

/** The loss of the scores of one layer, and its gradient. */
export function sequenceBalance(pass: Pass, call: SequenceBalanceCall): BalanceLoss {
  const { rule, scores, plainChoice, gradient } = call;
  const { numSequences, seqLength } = pass;
  const numExperts = rule.numExperts;
  const choice = view(plainChoice);
  const values = view(scores);
  const rows = view(gradient);
  let loss = 0;
  for (let sequence = 0; sequence < numSequences; sequence++) {
    const firstToken = sequence * seqLength;
    const counts = new Float64Array(numExperts);
    const end = (firstToken + seqLength) * rule.numChosen;
    for (let at = firstToken * rule.numChosen; at < end; at++) counts[choice[at]!]!++;
    const meanScores = normalisedMean(values, firstToken, seqLength, numExperts);
    for (let expert = 0; expert < numExperts; expert++) {
      const share = (counts[expert]! * numExperts) / (rule.numChosen * seqLength);
      loss += share * meanScores[expert]!;
      rows[sequence * numExperts + expert] =
        (pass.balanceScale * share) / (seqLength * numSequences);
    }
  }
  return { loss: loss / numSequences, gradient };
}

/** Mean over the tokens of each expert's share of the token's scores. */
function normalisedMean(
  scores: Float32Array | Float64Array,
  firstToken: number,
  numTokens: number,
  numExperts: number,
): Float64Array {
  const mean = new Float64Array(numExperts);
  for (let token = firstToken; token < firstToken + numTokens; token++) {
    const start = token * numExperts;
    let total = 0;
    for (let expert = 0; expert < numExperts; expert++) total += scores[start + expert]!;
    const factor = 1 / (total * numTokens);
    for (let expert = 0; expert < numExperts; expert++) {
      mean[expert]! += scores[start + expert]! * factor;
    }
  }
  return mean;
}
