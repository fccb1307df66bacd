/**
 * @file The two kinds of error.
 *
 * An `InvariantError` is our bug: it is never caught, it ends the process with a stack trace.
 * An `OperationalError` is the world's doing (a file, a flag, a machine): callers switch on `code`,
 * people read `message`, which names the subject, what was given, what is allowed and what to do.
 */

/** A broken promise inside this code base. Never caught. */
export class InvariantError extends Error {
  override readonly name: string = "InvariantError";
}

/** `area.problem`; the part before the dot says who can help. */
export type ErrorCode = `${
  | "usage"
  | "config"
  | "data"
  | "tokenizer"
  | "checkpoint"
  | "run"
  | "training"
  | "device"
  | "kernel"
  | "parallel"
  | "model"
  | "inference"
  | "engine"
  | "serving"
  | "constraint"
  | "numerics"
  | "platform"}.${string}`;

/** A failure outside this code base, described for the person who can mend it. */
export class OperationalError extends Error {
  override readonly name: string = "OperationalError";
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    details: Readonly<Record<string, unknown>> = {},
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.details = details;
  }
}

/** What people call the errors of the system that they meet. */
const SYSTEM_REASONS: ReadonlyMap<unknown, string> = new Map([
  ["ENOENT", "there is no such file or folder"],
  ["EEXIST", "there is a file of this name"],
  ["EISDIR", "it is a folder"],
  ["ENOTDIR", "a part of this path is a file"],
  ["EACCES", "permission denied"],
  ["EPERM", "the system does not permit it"],
  ["EROFS", "the file system is read-only"],
  ["ENOSPC", "no space is left on the disk"],
  ["EADDRINUSE", "another program listens there"],
  ["EADDRNOTAVAIL", "this machine has no such address"],
]);

/** Why something failed, in words that follow a path or a name; whatever was thrown. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return SYSTEM_REASONS.get((error as { code?: unknown }).code) ?? error.message;
}

/**
 * Assert a relation at the door of a function; the message is built once a call, never in a loop.
 */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

/** For the arm of a `switch` or the end of a search that cannot be reached. */
export function unreachable(message: string): never {
  throw new InvariantError(message);
}

/** The value, or an `InvariantError` saying what was missing. */
export function defined<T>(value: T | undefined | null, what: string): T {
  if (value === undefined || value === null) throw new InvariantError(`${what} is missing`);
  return value;
}
