/**
 * @file Work that waits for communication on its way: it issues some, yields the operation, and
 * goes on when that is done. Whoever runs it may do other things between.
 */
import type { Operation } from "./communicator.ts";

export type Work<T> = Generator<Operation, T>;

/** Run to the end, waiting where it waits. */
export function finish<T>(work: Work<T>): T {
  try {
    for (;;) {
      const { done, value } = work.next();
      if (done === true) return value;
      value.wait();
    }
  } finally {
    // Where a wait failed: what the work holds is given back.
    work.return(undefined as T);
  }
}

/** The same work; `compute` runs once it has issued what it first waits for. */
export function* alongside<T>(work: Work<T>, compute: () => void): Work<T> {
  try {
    let step = work.next();
    compute();
    while (step.done !== true) {
      yield step.value;
      step = work.next();
    }
    return step.value;
  } finally {
    work.return(undefined as T);
  }
}
