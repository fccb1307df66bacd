/** @file A process that a test has started ends with the test, however that goes. */
import type { ChildProcess } from "node:child_process";

/**
 * Ends the process where the block does that says `using`, if it still runs there: a test that
 * fails before it has ended its process is one that fails, not one that its file waits for.
 */
export function leashed(child: ChildProcess): Disposable {
  return { [Symbol.dispose]: () => void child.kill("SIGKILL") };
}
