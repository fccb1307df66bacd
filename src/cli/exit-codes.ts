/**
 * @file The exit codes of `hadal`.
 *
 * 2 is what the shell's own tools return for a wrong command line, 70 is EX_SOFTWARE of
 * `sysexits.h`, and a process ended by signal N counts as 128 + N: 130 after Ctrl-C, 141 when the
 * reader of our output went away.
 */
import { OperationalError } from "../base/errors.ts";

export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
export const EXIT_INTERNAL = 70;
export const EXIT_BROKEN_PIPE = 141;

/** The signals that may end a verb, with the code the shell expects afterwards. */
export const SIGNAL_EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/** The code for an error that ended a verb. */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof OperationalError)) return EXIT_INTERNAL;
  return error.code.startsWith("usage.") ? EXIT_USAGE : EXIT_FAILURE;
}
