/**
 * @file Ctrl-C and `kill`: at once for most verbs, in an orderly way for one that asks.
 *
 * A training run wants to write its checkpoint first: it calls `orderly()` and gets a signal to
 * watch. The first Ctrl-C then aborts that signal, the second ends the process; without `orderly()`
 * the first one ends it.
 */
import { SIGNAL_EXIT_CODES } from "./exit-codes.ts";

export type EndingSignal = keyof typeof SIGNAL_EXIT_CODES;

export class Interruption {
  readonly #exit: (code: number) => void;
  readonly #controller = new AbortController();
  #isOrderly = false;
  #exitCode: number | undefined;

  constructor(exit: (code: number) => void) {
    this.#exit = exit;
  }

  /** From this call on, the first signal only aborts the `AbortSignal` returned. */
  orderly(): AbortSignal {
    this.#isOrderly = true;
    return this.#controller.signal;
  }

  /** The code to end with after an interruption, or undefined when there was none. */
  get exitCode(): number | undefined {
    return this.#exitCode;
  }

  /** To be called for each signal that arrives. */
  receive(signal: EndingSignal): void {
    const isFirst = this.#exitCode === undefined;
    this.#exitCode = SIGNAL_EXIT_CODES[signal];
    if (this.#isOrderly && isFirst) this.#controller.abort();
    else this.#exit(this.#exitCode);
  }
}
