/**
 * @file Reads a verb's command line by its declaration; every refusal says what is allowed.
 *
 * `node:util` parseArgs splits the words; types, ranges, choices and the nearest name to a misspelt
 * flag are ours. `--help` and `--json` belong to every verb and are read here.
 */
import { parseArgs } from "node:util";
import { defined, type ErrorCode, OperationalError } from "../base/errors.ts";
import type { Declaration, Flag, NumberFlag, Operand } from "./declaration.ts";
import { nearest } from "./nearest.ts";

/** The flags of every verb. */
export const COMMON_FLAGS = {
  json: {
    kind: "switch",
    help: "print one JSON object on the last line of stdout, and nothing else there",
  },
  help: { kind: "switch", help: "print this text" },
} as const;

export interface ParsedLine {
  readonly help: boolean;
  readonly json: boolean;
  /** Typed as `Values` of the declaration by the caller; empty when help was asked for. */
  readonly values: Readonly<Record<string, unknown>>;
}

interface GivenWords {
  readonly flags: ReadonlyMap<string, readonly string[]>;
  readonly operands: readonly string[];
  /** The words after `--` of a verb that takes them. */
  readonly rest: readonly string[];
}

/** Whether the words ask for JSON, even where the rest of them is wrong. */
export function asksForJson(words: readonly string[]): boolean {
  const end = words.indexOf("--");
  return words.slice(0, end < 0 ? words.length : end).includes("--json");
}

/** The values on a command line (the words after the verb), or an `OperationalError` `usage.…`. */
export function parseLine(declaration: Declaration, words: readonly string[]): ParsedLine {
  const given = splitWords(declaration, words);
  const json = given.flags.has("json");
  if (given.flags.has("help")) return { help: true, json, values: {} };
  refuseConflicts(declaration, given);
  const values: Record<string, unknown> = { ...operandValues(declaration, given.operands) };
  if (declaration.rest !== undefined) values["rest"] = restValue(declaration, given.rest);
  for (const [name, flag] of Object.entries(declaration.flags)) {
    const texts = given.flags.get(name);
    if (texts === undefined) refuseIfRequired(declaration, { name, flag, given });
    values[name] = flagValue(declaration, name, flag, texts);
  }
  return { help: false, json, values };
}

function splitWords(declaration: Declaration, words: readonly string[]): GivenWords {
  const known: Readonly<Record<string, Flag>> = { ...declaration.flags, ...COMMON_FLAGS };
  const options = Object.fromEntries(
    Object.entries(known).map(([name, { kind }]) => [
      name,
      { type: kind === "switch" ? ("boolean" as const) : ("string" as const) },
    ]),
  );
  const { tokens } = parseArgs({ args: [...words], options, strict: false, tokens: true });
  const flags = new Map<string, string[]>();
  const operands: string[] = [];
  const rest: string[] = [];
  let variadic: string[] | undefined;
  for (const token of tokens) {
    if (token.kind === "option-terminator") {
      variadic = declaration.rest === undefined ? undefined : rest;
    } else if (token.kind === "positional") (variadic ?? operands).push(token.value);
    else {
      const name = token.rawName === "-h" ? "help" : token.name;
      const flag =
        Object.hasOwn(known, name) && token.rawName !== `-${name}` ? known[name] : undefined;
      if (flag === undefined) throw unknownFlag(declaration, token.rawName, Object.keys(known));
      const texts = flags.get(name) ?? [];
      flags.set(name, texts);
      texts.push(textOf(declaration, flag, token));
      variadic = flag.kind === "list" && flag.variadic ? texts : undefined;
    }
  }
  return { flags, operands, rest };
}

function restValue(declaration: Declaration, words: readonly string[]): readonly string[] {
  const { placeholder, help } = defined(declaration.rest, "what stands after --");
  if (words.length > 0) return words;
  throw usage(declaration, "missing", `-- ${placeholder} is missing: ${help}`);
}

function textOf(
  declaration: Declaration,
  flag: Flag,
  token: { readonly rawName: string; readonly value?: string | undefined },
): string {
  if (flag.kind === "switch") {
    if (token.value === undefined) return "";
    throw usage(declaration, "value", `${token.rawName} takes no value (${token.value} was given)`);
  }
  if (token.value !== undefined && token.value !== "") return token.value;
  if (flag.kind === "text" && token.value === "") return "";
  throw usage(
    declaration,
    "value",
    `${token.rawName} needs a value: ${token.rawName} ${flag.placeholder}`,
  );
}

function flagValue(
  declaration: Declaration,
  name: string,
  flag: Flag,
  texts: readonly string[] | undefined,
): unknown {
  if (flag.kind === "switch") return texts !== undefined;
  if (flag.kind === "list") return texts ?? [];
  if (texts === undefined) return flag.default;
  if (texts.length > 1) {
    throw usage(declaration, "repeated", `--${name} was given ${texts.length} times; give it once`);
  }
  const text = defined(texts[0], `the value of --${name}`);
  if (flag.kind === "number") return numberValue(declaration, `--${name}`, flag, text);
  refuseOtherThan(declaration, `--${name}`, flag.choices, text);
  return text;
}

function numberValue(
  declaration: Declaration,
  subject: string,
  flag: NumberFlag,
  text: string,
): number {
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
  const allowed =
    Number.isFinite(value) &&
    (!flag.whole || Number.isSafeInteger(value)) &&
    value >= (flag.least ?? -Infinity) &&
    value > (flag.above ?? -Infinity) &&
    value <= (flag.most ?? Infinity);
  if (allowed) return value;
  throw usage(declaration, "value", `${subject} (${text}) must be ${rangeText(flag)}`);
}

/** "a whole number >= 1 and <= 8". */
export function rangeText(flag: NumberFlag): string {
  const bounds = [
    flag.least === undefined ? [] : [`>= ${flag.least}`],
    flag.above === undefined ? [] : [`> ${flag.above}`],
    flag.most === undefined ? [] : [`<= ${flag.most}`],
  ].flat();
  return [flag.whole ? "a whole number" : "a number", bounds.join(" and ")].join(" ").trim();
}

function operandValues(
  declaration: Declaration,
  texts: readonly string[],
): Readonly<Record<string, string>> {
  const operands: [string, Operand][] = Object.entries(declaration.operands ?? {});
  const values: Record<string, string> = {};
  for (const [index, [name, operand]] of operands.entries()) {
    const text = texts[index];
    if (text === undefined) {
      throw usage(
        declaration,
        "missing",
        `${operand.placeholder} is missing: ${operandHelp(operand)}`,
      );
    }
    refuseOtherThan(declaration, operand.placeholder, operand.choices, text);
    values[name] = text;
  }
  const extra = texts[operands.length];
  if (extra === undefined) return values;
  throw usage(declaration, "unexpected-word", `unexpected word: ${extra}`);
}

/** What an operand is, and the words that it may be. */
export function operandHelp({ help, choices }: Operand): string {
  return choices === undefined ? help : `${help} (${alternatives(choices)})`;
}

function refuseOtherThan(
  declaration: Declaration,
  subject: string,
  choices: readonly string[] | undefined,
  text: string,
): void {
  if (choices === undefined || choices.includes(text)) return;
  throw usage(declaration, "value", `${subject} (${text}) must be ${alternatives(choices)}`);
}

function refuseConflicts(declaration: Declaration, given: GivenWords): void {
  for (const group of declaration.atMostOneOf ?? []) {
    const both = group.filter((name) => given.flags.has(name)).map((name) => `--${name}`);
    if (both.length < 2) continue;
    throw usage(declaration, "conflict", `${both.join(" and ")} exclude each other; give one`);
  }
}

function refuseIfRequired(
  declaration: Declaration,
  { name, flag, given }: { name: string; flag: Flag; given: GivenWords },
): void {
  if (flag.kind === "switch" || !flag.required) return;
  if (flag.unless !== undefined && given.flags.has(flag.unless)) return;
  const unless = flag.unless === undefined ? "" : `, or --${flag.unless}`;
  throw usage(declaration, "missing", `give --${name} ${flag.placeholder}${unless}: ${flag.help}`);
}

function unknownFlag(
  declaration: Declaration,
  rawName: string,
  known: readonly string[],
): OperationalError {
  const guess = nearest(rawName.replace(/^-+/, ""), known);
  const hint = guess === undefined ? "" : `; did you mean --${guess}?`;
  return usage(declaration, "unknown-flag", `unknown flag ${rawName}${hint}`);
}

/** "tiny, small or base". */
export function alternatives(choices: readonly string[]): string {
  return choices.length < 2
    ? choices.join("")
    : `${choices.slice(0, -1).join(", ")} or ${choices[choices.length - 1]}`;
}

function usage(declaration: Declaration, problem: string, message: string): OperationalError {
  const code: ErrorCode = `usage.${problem}`;
  return new OperationalError(
    code,
    `${message}\nSee hadal ${declaration.name} --help for every flag.`,
    { verb: declaration.name },
  );
}
