/**
 * @file The dispatch plan of one MoE layer in one pass: which row of the sorted choices belongs to
 * which token.
 *
 * Rows are the T·K (token, expert) choices, sorted by expert, tokens in order within an expert.
 * Nothing is dropped and nothing padded. `offsets` drives the grouped products; `rowOfChoice`
 * brings results back to their tokens.
 */
import { planDispatch } from "../kernels/dispatch/contract.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { Pass } from "./pass.ts";

export interface DispatchPlan {
  /** First row of each expert, [1, E+1]. */
  readonly offsets: Tensor<"i32">;
  /** [1, R] */
  readonly tokenOfRow: Tensor<"i32">;
  /** [T, K] */
  readonly rowOfChoice: Tensor<"i32">;
}

/** Sort `choice` [T, K] by expert; the plan is saved for backward. */
export function makeDispatchPlan(
  pass: Pass,
  choice: Tensor<"i32">,
  numExperts: number,
): DispatchPlan {
  const { saved, device } = pass;
  const { rows: numTokens, columns: numChosen } = choice;
  const offsets = saved.allocate("i32", [1, numExperts + 1]);
  const tokenOfRow = saved.allocate("i32", [1, numTokens * numChosen]);
  const rowOfChoice = saved.allocate("i32", [numTokens, numChosen]);
  planDispatch(device, { choice, offsets, tokenOfRow, rowOfChoice });
  return { offsets, tokenOfRow, rowOfChoice };
}

/** Tokens that chose each expert. */
export function expertLoadOf({ offsets }: DispatchPlan): Int32Array {
  const ends = view(offsets);
  return Int32Array.from({ length: ends.length - 1 }, (_, e) => ends[e + 1]! - ends[e]!);
}
