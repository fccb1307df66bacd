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
 * are those of `first`; null: there are none.
 */
export function runInterleaved(first: Work, second: Work, weights: WeightWork | null): void {
  const [one, other] = [first[Symbol.iterator](), second[Symbol.iterator]()];
  let left = weights;
  try {
    let a = one.next();
    let b = other.next();
    while (!a.done || !b.done) {
      if (!a.done) {
        if (left !== null) fillUntil(a.value, left);
        a.value.wait();
        a = one.next();
      }
      if (!b.done) {
        if (left !== null && !fillUntil(b.value, left) && a.done) {
          left.finish();
          left = null;
        }
        b.value.wait();
        b = other.next();
      }
    }
  } finally {
    // Where a wait failed: what they hold is given back.
    one.return?.();
    other.return?.();
  }
  left?.finish();
}

/** Whether the operation is done before the pieces are. */
function fillUntil(operation: Operation, weights: WeightWork): boolean {
  while (!operation.isDone()) if (!weights.fill()) return false;
  return true;
}
