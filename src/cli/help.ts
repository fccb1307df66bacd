/** @file The text of `hadal --help` and `hadal VERB --help`, made from the declarations. */
import type { Declaration, Flag, Operand } from "./declaration.ts";
import { alternatives, COMMON_FLAGS, operandHelp, rangeText } from "./parse.ts";
import { columns, wrap } from "./text.ts";

/** A wider column of prose is hard to read. */
const MOST_COLUMNS = 100;

/** What `hadal --help` prints. */
export function overview(declarations: readonly Declaration[]): string {
  const verbs = columns(declarations.map(({ name, summary }) => [`  ${name}`, summary]));
  return [
    "hadal trains, evaluates and runs language models of the DeepSeek-V3 architecture.",
    "",
    "Usage: hadal VERB [flags]",
    "",
    "Verbs:",
    ...verbs,
    "",
    "hadal VERB --help explains a verb; hadal --version says which Hadal this is.",
  ].join("\n");
}

/** What `hadal VERB --help` prints. */
export function verbHelp(declaration: Declaration, terminalColumns: number): string {
  const width = Math.min(terminalColumns, MOST_COLUMNS);
  const { rest } = declaration;
  const named: readonly Operand[] = Object.values(declaration.operands ?? {});
  const operands = rest === undefined ? named : [...named, rest];
  const flags: [string, Flag][] = Object.entries({ ...declaration.flags, ...COMMON_FLAGS });
  const nameColumn = [
    ...operands.map(({ placeholder }) => placeholder),
    ...flags.map(([name, flag]) => flagName(name, flag)),
  ];
  const indent = Math.max(...nameColumn.map((name) => name.length)) + 4;
  const entry = (name: string, text: string): string[] =>
    wrap(text, width - indent).map(
      (line, index) => (index === 0 ? `  ${name}` : "").padEnd(indent) + line,
    );
  return [
    ...wrap(`hadal ${declaration.name}: ${declaration.summary}`, width),
    "",
    ...wrap(`Usage: hadal ${declaration.name} ${declaration.usage}`.trimEnd(), width),
    ...(operands.length === 0 ? [] : ["", "Operands:"]),
    ...operands.flatMap((operand) => entry(operand.placeholder, operandHelp(operand))),
    "",
    "Flags:",
    ...flags.flatMap(([name, flag]) => entry(flagName(name, flag), flagHelp(flag))),
    "",
    "Examples:",
    ...declaration.examples.flatMap(({ command, does }) => [`  ${command}`, `      ${does}`]),
  ].join("\n");
}

function flagName(name: string, flag: Flag): string {
  if (flag.kind === "switch") return `--${name}`;
  const many = flag.kind === "list" && flag.variadic ? "…" : "";
  return `--${name} ${flag.placeholder}${many}`;
}

function flagHelp(flag: Flag): string {
  if (flag.kind === "switch") return flag.help;
  const notes: string[] = [];
  if (flag.kind === "text" && flag.choices !== undefined) notes.push(alternatives(flag.choices));
  if (flag.kind === "number") notes.push(rangeText(flag));
  if (flag.kind === "list" && !flag.variadic) notes.push("may be repeated");
  if (flag.required) notes.push(`required${flag.unless ? ` without --${flag.unless}` : ""}`);
  if (flag.kind !== "list" && flag.default !== undefined) notes.push(`default: ${flag.default}`);
  return notes.length === 0 ? flag.help : `${flag.help} (${notes.join("; ")})`;
}
