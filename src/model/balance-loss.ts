/**
 * @file The sequence-wise balance loss of one MoE layer, once its terms stand in memory.
 *
 *     L = mean over the sequences of Σ_i f_i · P_i
 *
 * kernels/sequence-balance has f and P. TopK is that of the plain scores, as the report prints it:
 * no bias, no groups. L is 1 if all is even. Source: DeepSeek-V3 report §2.1.2 (α multiplies L; see
 * StepOptions.balanceWeight).
 */
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";

export interface BalanceLoss {
  /** f_i · P_i, [numSequences, E]. */
  readonly terms: Tensor<"f64">;
  /** balanceScale · ∂L/∂(normalised score), [numSequences, E]. */
  readonly gradient: Tensor<FloatType>;
}

/** L, unweighted; 0 where the pass has none. */
export function balanceLossOf(balance: BalanceLoss | null): number {
  if (balance === null) return 0;
  return view(balance.terms).reduce((sum, term) => sum + term, 0) / balance.terms.rows;
}
