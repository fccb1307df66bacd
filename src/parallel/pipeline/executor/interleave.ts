/**
 * @file Runs pieces of work that wait for communication: one alone, or two in alternation.
 */
import type { Work } from "./stage.ts";

/** Runs `work` to its end. */
export function runAlone(work: Work): void {
  for (const operation of work) operation.wait();
}

/**
 * Runs both to their ends. Each runs until it has issued communication, then the other one runs,
 * and so on: what is issued by one is under way while the other computes. `afterFirst` runs when
 * `first` has ended, before anything is waited for again.
 */
export function runInterleaved(first: Work, second: Work, afterFirst: () => void): void {
  const backward = first[Symbol.iterator]();
  const forward = second[Symbol.iterator]();
  let a = backward.next();
  let b = forward.next();
  if (a.done) afterFirst();
  while (!a.done || !b.done) {
    if (!a.done) {
      a.value.wait();
      a = backward.next();
      if (a.done) afterFirst();
    }
    if (!b.done) {
      b.value.wait();
      b = forward.next();
    }
  }
}
