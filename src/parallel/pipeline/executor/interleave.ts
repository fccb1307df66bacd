/**
 * @file Runs pieces of work that wait for communication: one alone, or two in alternation.
 *
 * Which of two goes on never depends on which message has come: every rank issues its messages in
 * one order. Only what stays on the rank, the weights' gradients, is done when there is time.
 */
import type { Operation } from "../../communicator/communicator.ts";
import type { Work } from "./stage.ts";

/** The weights' gradients of a full backward. */
export interface WeightWork {
  /** Does a piece of it if one is there, and says whether it was. */
  fill(): boolean;
  /** Does the rest of it, once the backward has ended. */
  finish(): void;
}

/** Runs `work` to its end; `weights` are those of a full backward. */
export function runAlone(work: Work, weights: WeightWork | null): void {
  for (const operation of work) {
    if (weights !== null) fillUntil(operation, weights);
    operation.wait();
  }
  weights?.finish();
}

/**
 * Runs both to their ends. Each runs until it has issued communication, then the other one runs,
 * and so on: what is issued by one is under way while the other computes. The weights' gradients
 * are those of `first`.
 */
export function runInterleaved(first: Work, second: Work, weights: WeightWork): void {
  const backward = first[Symbol.iterator]();
  const forward = second[Symbol.iterator]();
  let a = backward.next();
  let b = forward.next();
  let isFinished = false;
  while (!a.done || !b.done) {
    if (!a.done) {
      fillUntil(a.value, weights);
      a.value.wait();
      a = backward.next();
    }
    if (!b.done) {
      if (!isFinished && !fillUntil(b.value, weights) && a.done) {
        weights.finish();
        isFinished = true;
      }
      b.value.wait();
      b = forward.next();
    }
  }
  if (!isFinished) weights.finish();
}

/** Whether the operation is done before the pieces are. */
function fillUntil(operation: Operation, weights: WeightWork): boolean {
  while (!operation.isDone()) if (!weights.fill()) return false;
  return true;
}
