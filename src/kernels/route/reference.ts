/** @file The gate's decision and its gradient, token by token. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { DTYPE_BYTES, type FloatType } from "../../tensor/dtype.ts";
import { slot } from "../kernel.ts";
import { ROUTE_AT as AT, ROUTE_BACKWARD_AT as BACK, ROUTE_TOKENS_PER_TASK } from "./contract.ts";

type Floats = Float32Array | Float64Array;
const WEIGHT_SUM_FLOOR = 1e-20;

function floatsOf(context: ThreadContext, dtype: FloatType): Floats {
  return dtype === "f32" ? context.memory.f32 : context.memory.f64;
}

export function createReferenceRoute(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  const bytes = DTYPE_BYTES[dtype];
  // Kept: making a new one for each token took longer than routing it.
  let biased = new Float64Array(0);
  return (slots, firstTask, endTask) => {
    const floats = floatsOf(context, dtype);
    const choices = context.memory.i32;
    const experts = slot(slots, AT.experts);
    const chosen = slot(slots, AT.chosen);
    const logits = slot(slots, AT.logits) / bytes;
    const scores = slot(slots, AT.scores) / bytes;
    const choice = slot(slots, AT.choice) / 4;
    const weight = slot(slots, AT.weight) / bytes;
    const bias = slot(slots, AT.bias) / bytes;
    const plainChoice = slot(slots, AT.plainChoice) / 4;
    const score = slot(slots, AT.softmax) === 1 ? softmaxScores : sigmoidScores;
    if (biased.length !== experts) biased = new Float64Array(experts);
    const end = Math.min(endTask * ROUTE_TOKENS_PER_TASK, slot(slots, AT.tokens));
    for (let token = firstTask * ROUTE_TOKENS_PER_TASK; token < end; token++) {
      const scoreAt = scores + token * experts;
      score(floats, logits + token * experts, scoreAt, experts);
      for (let expert = 0; expert < experts; expert++) {
        biased[expert] = comparable(floats[scoreAt + expert]! + floats[bias + expert]!);
      }
      maskGroups(biased, slots);
      const choiceAt = choice + token * chosen;
      chooseTop(biased, choices, choiceAt, chosen);
      writeWeights(floats, scoreAt, choices, choiceAt, weight + token * chosen, slots);
      if (plainChoice === 0) continue;
      for (let expert = 0; expert < experts; expert++) {
        biased[expert] = comparable(floats[scoreAt + expert]!);
      }
      chooseTop(biased, choices, plainChoice + token * chosen, chosen);
    }
  };
}

/**
 * −MAX for NaN, not −∞: a NaN score must still beat a masked group, so that K experts can always be
 * chosen.
 */
function comparable(score: number): number {
  return Number.isNaN(score) ? -Number.MAX_VALUE : score;
}

function sigmoidScores(floats: Floats, from: number, to: number, experts: number): void {
  for (let expert = 0; expert < experts; expert++) {
    floats[to + expert] = 1 / (1 + Math.exp(-floats[from + expert]!));
  }
}

function softmaxScores(floats: Floats, from: number, to: number, experts: number): void {
  let top = -Infinity;
  for (let expert = 0; expert < experts; expert++) top = Math.max(top, floats[from + expert]!);
  let total = 0;
  for (let expert = 0; expert < experts; expert++) {
    const exponential = Math.exp(floats[from + expert]! - top);
    floats[to + expert] = exponential;
    total += exponential;
  }
  for (let expert = 0; expert < experts; expert++) floats[to + expert]! /= total;
}

/** Set the experts of all but the best groups to −∞. */
function maskGroups(biased: Float64Array, slots: Float64Array): void {
  const groups = slot(slots, AT.groups);
  const chosenGroups = slot(slots, AT.chosenGroups);
  if (chosenGroups === groups) return;
  const perGroup = biased.length / groups;
  const groupScores = new Float64Array(groups);
  for (let group = 0; group < groups; group++) {
    let first = -Infinity;
    let second = -Infinity;
    for (let expert = group * perGroup; expert < (group + 1) * perGroup; expert++) {
      const value = biased[expert]!;
      if (value > first) {
        second = first;
        first = value;
      } else if (value > second) second = value;
    }
    const single = slot(slots, AT.groupByMax) === 1 || perGroup === 1;
    groupScores[group] = single ? first : Math.max(first + second, -Number.MAX_VALUE);
  }
  const kept = new Int32Array(chosenGroups);
  chooseTop(groupScores, kept, 0, chosenGroups);
  for (let group = 0; group < groups; group++) {
    if (!kept.includes(group)) biased.fill(-Infinity, group * perGroup, (group + 1) * perGroup);
  }
}

/**
 * Indexes of the `count` largest values, largest first, ties to the lower index. Chosen values
 * become −∞.
 */
function chooseTop(values: Float64Array, out: Int32Array, at: number, count: number): void {
  for (let rank = 0; rank < count; rank++) {
    let best = -1;
    let bestValue = -Infinity;
    for (let index = 0; index < values.length; index++) {
      if (values[index]! > bestValue) {
        bestValue = values[index]!;
        best = index;
      }
    }
    out[at + rank] = best;
    values[best] = -Infinity;
  }
}

function writeWeights(
  floats: Floats,
  scores: number,
  choices: Int32Array,
  choiceAt: number,
  weightAt: number,
  slots: Float64Array,
): void {
  const chosen = slot(slots, AT.chosen);
  let factor = slot(slots, AT.routedScale);
  if (slot(slots, AT.normalise) === 1) {
    let total = WEIGHT_SUM_FLOOR;
    for (let rank = 0; rank < chosen; rank++) total += floats[scores + choices[choiceAt + rank]!]!;
    factor /= total;
  }
  for (let rank = 0; rank < chosen; rank++) {
    floats[weightAt + rank] = floats[scores + choices[choiceAt + rank]!]! * factor;
  }
}

export function createReferenceRouteBackward(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  const bytes = DTYPE_BYTES[dtype];
  return (slots, firstTask, endTask) => {
    const floats = floatsOf(context, dtype);
    const experts = slot(slots, BACK.experts);
    const dScores = new Float64Array(experts);
    const end = Math.min(endTask * ROUTE_TOKENS_PER_TASK, slot(slots, BACK.tokens));
    for (let token = firstTask * ROUTE_TOKENS_PER_TASK; token < end; token++) {
      const scoreAt = slot(slots, BACK.scores) / bytes + token * experts;
      dScores.fill(0);
      addWeightGradient(floats, context.memory.i32, token, scoreAt, bytes, dScores, slots);
      addBalanceGradient(floats, token, scoreAt, bytes, dScores, slots);
      const outAt = slot(slots, BACK.dLogits) / bytes + token * experts;
      const toLogits = slot(slots, BACK.softmax) === 1 ? softmaxGradient : sigmoidGradient;
      toLogits(floats, scoreAt, dScores, outAt);
    }
  };
}

/** dScores from the gradient of the routing weights of one token. */
function addWeightGradient(
  floats: Floats,
  choices: Int32Array,
  token: number,
  scoreAt: number,
  bytes: number,
  dScores: Float64Array,
  slots: Float64Array,
): void {
  const chosen = slot(slots, BACK.chosen);
  const choiceAt = slot(slots, BACK.choice) / 4 + token * chosen;
  const gradientAt = slot(slots, BACK.dWeight) / bytes + token * chosen;
  const scale = slot(slots, BACK.routedScale);
  const normalise = slot(slots, BACK.normalise) === 1;
  let total = WEIGHT_SUM_FLOOR;
  let weighted = 0;
  for (let rank = 0; rank < chosen; rank++) {
    const score = floats[scoreAt + choices[choiceAt + rank]!]!;
    total += score;
    weighted += score * floats[gradientAt + rank]!;
  }
  for (let rank = 0; rank < chosen; rank++) {
    const gradient = floats[gradientAt + rank]!;
    dScores[choices[choiceAt + rank]!]! +=
      scale * (normalise ? (gradient - weighted / total) / total : gradient);
  }
}

/** dScores from the balance loss: through the scores divided by their sum over the experts. */
function addBalanceGradient(
  floats: Floats,
  token: number,
  scoreAt: number,
  bytes: number,
  dScores: Float64Array,
  slots: Float64Array,
): void {
  const tokensPerSequence = slot(slots, BACK.tokensPerSequence);
  if (tokensPerSequence === 0) return;
  const experts = dScores.length;
  const sequence = Math.floor(token / tokensPerSequence);
  const balanceAt = slot(slots, BACK.balance) / bytes + sequence * experts;
  let total = 0;
  let weighted = 0;
  for (let expert = 0; expert < experts; expert++) {
    total += floats[scoreAt + expert]!;
    weighted += floats[scoreAt + expert]! * floats[balanceAt + expert]!;
  }
  for (let expert = 0; expert < experts; expert++) {
    dScores[expert]! += (floats[balanceAt + expert]! - weighted / total) / total;
  }
}

function sigmoidGradient(floats: Floats, scores: number, dScores: Float64Array, out: number): void {
  for (let expert = 0; expert < dScores.length; expert++) {
    const score = floats[scores + expert]!;
    floats[out + expert] = dScores[expert]! * score * (1 - score);
  }
}

function softmaxGradient(floats: Floats, scores: number, dScores: Float64Array, out: number): void {
  let weighted = 0;
  for (let expert = 0; expert < dScores.length; expert++) {
    weighted += floats[scores + expert]! * dScores[expert]!;
  }
  for (let expert = 0; expert < dScores.length; expert++) {
    floats[out + expert] = floats[scores + expert]! * (dScores[expert]! - weighted);
  }
}
