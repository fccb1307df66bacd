/**
 * @file What a verb is to the command line: a declaration, and how to load the function that runs
 * it.
 */
import type { Declaration, Values } from "./declaration.ts";
import type { Interruption } from "./interruption.ts";
import type { Output } from "./output.ts";

/** What the command line hands to a verb. */
export interface Context {
  readonly output: Output;
  readonly interruption: Interruption;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Runs a verb; an `OperationalError` is the world's failure, anything else thrown is our bug. */
export type Run<D extends Declaration> = (values: Values<D>, context: Context) => Promise<void>;

/** A verb of the table: light until it is loaded. */
export interface Verb {
  readonly declaration: Declaration;
  load(): Promise<(values: Readonly<Record<string, unknown>>, context: Context) => Promise<void>>;
}

/**
 * Ties a declaration to the module that exports its `run`; the types of both are checked against
 * each other.
 */
export function verb<const D extends Declaration>(
  declaration: D,
  load: () => Promise<{ readonly run: Run<D> }>,
): Verb {
  return {
    declaration,
    load: async () => {
      const { run } = await load();
      // `parseLine` built the values by this very declaration.
      return (values, context) => run(values as Values<D>, context);
    },
  };
}
