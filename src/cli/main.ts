/**
 * @file `hadal VERB …`: finds the verb, reads its flags, runs it, turns what it throws into an exit
 * code.
 *
 * Nothing here touches `process`; `start.ts` does, so that tests can run the whole command line in
 * their own process.
 */
import { OperationalError } from "../base/errors.ts";
import { VERSION } from "../base/version.ts";
import { EXIT_OK, EXIT_USAGE, exitCodeOf } from "./exit-codes.ts";
import { overview, verbHelp } from "./help.ts";
import type { Interruption } from "./interruption.ts";
import { nearest } from "./nearest.ts";
import { Output } from "./output.ts";
import { asksForJson, parseLine } from "./parse.ts";
import type { TextStream } from "./progress.ts";
import type { Context, Verb } from "./verb.ts";

/** The process around the command line. */
export interface World {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly interruption: Interruption;
}

/** Runs one command line (the words after `hadal`) and returns the exit code. */
export async function main(
  words: readonly string[],
  verbs: readonly Verb[],
  world: World,
): Promise<number> {
  const output = new Output({ ...world, json: asksForJson(words) });
  try {
    const code = await dispatch(words, verbs, { ...world, output });
    return world.interruption.exitCode ?? code;
  } catch (error) {
    const interrupted = world.interruption.exitCode;
    if (interrupted !== undefined && isAbort(error)) return interrupted;
    report(error, output);
    return exitCodeOf(error);
  } finally {
    output.endProgress();
  }
}

/** Prints an error that ended a verb: an operational one in its own words, a bug with its stack. */
export function report(error: unknown, output: Output): void {
  const operational = error instanceof OperationalError;
  const message = error instanceof Error ? error.message : String(error);
  if (operational) output.fail("error", message);
  else {
    const trace = error instanceof Error ? causes(error).join("\ncaused by: ") : message;
    output.fail(
      "internal error",
      `${trace}\nThis is a bug in Hadal ${VERSION} (Node ${process.version}, ${process.platform} ` +
        `${process.arch}). Please report it with the lines above and the command that led to it.`,
    );
  }
  if (output.hasResult) return;
  const code = operational ? error.code : "internal";
  output.result({ error: { code, message, details: operational ? error.details : {} } });
}

function causes(error: Error): string[] {
  const trace = error.stack ?? `${error.name}: ${error.message}`;
  return error.cause instanceof Error ? [trace, ...causes(error.cause)] : [trace];
}

async function dispatch(
  words: readonly string[],
  verbs: readonly Verb[],
  context: Context,
): Promise<number> {
  const { output } = context;
  const [first, ...rest] = words;
  if (first === "--version") {
    output.line(`hadal ${VERSION}`);
    output.result({ version: VERSION });
    return EXIT_OK;
  }
  const declarations = verbs.map(({ declaration }) => declaration);
  if (first === "--help" || first === "-h") {
    printHelp(overview(declarations), output);
    return EXIT_OK;
  }
  if (first === undefined) {
    output.helpAfterMistake(overview(declarations));
    return EXIT_USAGE;
  }
  const chosen = verbs.find(({ declaration }) => declaration.name === first);
  if (chosen === undefined) {
    throw unknownVerb(
      first,
      declarations.map(({ name }) => name),
    );
  }
  const line = parseLine(chosen.declaration, rest);
  if (line.help) printHelp(verbHelp(chosen.declaration, output.width), output);
  else await (await chosen.load())(line.values, context);
  return EXIT_OK;
}

function printHelp(text: string, output: Output): void {
  output.line(text);
  output.result({ help: text });
}

function unknownVerb(word: string, names: readonly string[]): OperationalError {
  const guess = nearest(word, names);
  const hint = guess === undefined ? "" : `; did you mean hadal ${guess}?`;
  const what = word.startsWith("-") ? "flag" : "verb";
  return new OperationalError(
    "usage.unknown-verb",
    `unknown ${what} ${word}${hint}\nSee hadal --help for every verb.`,
    { known: names },
  );
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}
