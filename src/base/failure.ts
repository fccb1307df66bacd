/** @file An `OperationalError` as data, for another thread; its cause stays where it happened. */

import { type ErrorCode, OperationalError } from "./errors.ts";

export interface Failure {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** Of an operational error; any other is thrown on. */
export function failureOf(error: unknown): Failure {
  if (!(error instanceof OperationalError)) throw error;
  const { code, message, details } = error;
  return { code, message, details };
}

export function errorOf({ code, message, details }: Failure): OperationalError {
  return new OperationalError(code, message, details);
}
