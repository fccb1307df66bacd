/** @file The balance loss of a gate's scores, sequence by sequence. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { DTYPE_BYTES, type FloatType } from "../../tensor/dtype.ts";
import { slot } from "../kernel.ts";
import { SEQUENCE_BALANCE_AT as AT } from "./contract.ts";

export function createReferenceSequenceBalance(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const dtype = variant as FloatType;
  const bytes = DTYPE_BYTES[dtype];
  return (slots, firstTask, endTask) => {
    const { f32, f64, i32 } = context.memory;
    const floats = dtype === "f32" ? f32 : f64;
    const experts = slot(slots, AT.experts);
    const numTokens = slot(slots, AT.tokensPerSequence);
    const numChoices = numTokens * slot(slots, AT.chosen);
    const scores = slot(slots, AT.scores) / bytes;
    const choice = slot(slots, AT.choice) / 4;
    const gradient = slot(slots, AT.gradient) / bytes;
    const terms = slot(slots, AT.terms) / 8;
    const perShare = numTokens * slot(slots, AT.sequences);
    const counts = new Float64Array(experts);
    const means = new Float64Array(experts);
    for (let sequence = firstTask; sequence < endTask; sequence++) {
      counts.fill(0);
      const firstChoice = choice + sequence * numChoices;
      for (let at = firstChoice; at < firstChoice + numChoices; at++) counts[i32[at]!]!++;
      meanShares(means, floats, scores + sequence * numTokens * experts, numTokens);
      for (let expert = 0; expert < experts; expert++) {
        const share = (counts[expert]! * experts) / numChoices;
        const at = sequence * experts + expert;
        f64[terms + at] = share * means[expert]!;
        floats[gradient + at] = (slot(slots, AT.scale) * share) / perShare;
      }
    }
  };
}

/** Mean over the tokens of each expert's share of the token's scores. */
function meanShares(
  means: Float64Array,
  scores: Float32Array | Float64Array,
  first: number,
  numTokens: number,
): void {
  const experts = means.length;
  means.fill(0);
  for (let token = 0; token < numTokens; token++) {
    const start = first + token * experts;
    let total = 0;
    for (let expert = 0; expert < experts; expert++) total += scores[start + expert]!;
    const factor = 1 / (total * numTokens);
    for (let expert = 0; expert < experts; expert++) {
      means[expert]! += scores[start + expert]! * factor;
    }
  }
}
