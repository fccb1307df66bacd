/**
 * @file The sequence-wise balance loss of a gate, term by term, and its gradient.
 *
 *     f_i = E / (K · S) · Σ_t [i ∈ TopK(s_t)]        share of the choices; no gradient
 *     P_i = 1 / S · Σ_t s_ti / Σ_j s_tj
 *     terms_NE    = f_i · P_i                        the loss is their sum ÷ N
 *     gradient_NE = scale · f_i / (S · N)            of scale · loss by s_ti / Σ_j s_tj
 *
 *   N sequences of S tokens, E experts, K chosen, s the scores without bias
 *
 * TopK is the choice that is handed in. Terms are f64 whatever the scores are: who adds them up
 * rounds once. A task is a sequence.
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { isContiguous, type Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix } from "../door.ts";
import { slotIndex } from "../kernel.ts";

export const SEQUENCE_BALANCE_SLOTS = [
  "sequences",
  "tokensPerSequence",
  "experts",
  "chosen",
  "scale",
  "scores",
  "choice",
  "gradient",
  "terms",
] as const;
export const SEQUENCE_BALANCE_AT: Record<(typeof SEQUENCE_BALANCE_SLOTS)[number], number> =
  slotIndex(SEQUENCE_BALANCE_SLOTS);

export interface SequenceBalanceCall {
  /** [N·S, E] */
  readonly scores: Tensor<FloatType>;
  /** [N·S, K] */
  readonly choice: Tensor<"i32">;
  readonly scale: number;
  /** [N, E] */
  readonly gradient: Tensor<FloatType>;
  /** [N, E] */
  readonly terms: Tensor<"f64">;
}

/** Overwrites gradient and terms. */
export function sequenceBalance(device: Device, call: SequenceBalanceCall): void {
  const { scores, choice, scale, gradient, terms } = call;
  const { rows: sequences, columns: experts } = gradient;
  const dtypes = [scores.dtype];
  assertMatrix(device, "sequenceBalance scores", scores, dtypes, scores.rows, experts);
  assertMatrix(device, "sequenceBalance choice", choice, ["i32"], scores.rows, choice.columns);
  assertMatrix(device, "sequenceBalance gradient", gradient, dtypes, sequences, experts);
  assertMatrix(device, "sequenceBalance terms", terms, ["f64"], sequences, experts);
  for (const tensor of [scores, choice, gradient, terms]) {
    assert(isContiguous(tensor), "sequenceBalance: operands are contiguous");
  }
  assertIndexes("sequenceBalance choice", choice, 0, experts);
  device.launch(
    `sequenceBalance/${scores.dtype}`,
    [
      sequences,
      divExact(scores.rows, sequences),
      experts,
      choice.columns,
      scale,
      scores.byteOffset,
      choice.byteOffset,
      gradient.byteOffset,
      terms.byteOffset,
    ],
    sequences,
  );
}
