/** @file The shape of a file: its header, its width, its length, the length of its functions. */
import ts from "typescript-5";
import { type Finding, findingAt, lineOf, type Source, visit } from "./source.ts";

const MOST_COLUMNS = 100;
const MOST_FUNCTION_LINES = 70;
const MOST_FILE_LINES = 500;

/** The header says what the file is, what it refuses, where it comes from. */
export function checkHeader({ path, text }: Source): Finding[] {
  if (/^\/\*\*\s+(\* )?@file (?!\*\/)\S/.test(text)) return [];
  return [{ path, line: 1, message: "open the file with /** @file … */: what it is" }];
}

/** Lines of more than 100 characters, unless an address in them cannot be broken. */
export function checkColumns({ path, lines }: Source): Finding[] {
  return lines.flatMap((line, index) => {
    const width = [...line].length;
    if (width <= MOST_COLUMNS || /https?:\/\/\S{60,}/.test(line)) return [];
    const message = `${width} columns, at most ${MOST_COLUMNS} (tools/rewrap.ts mends comments)`;
    return [{ path, line: index + 1, message }];
  });
}

/** A length that is too great: of a file (`path`) or of a function in it (`path#name`). */
export interface Excess {
  readonly key: string;
  readonly lines: number;
  readonly finding: Finding;
}

/** The file and the functions of it that are longer than they should be. */
export function excesses(source: Source): Excess[] {
  const lines = source.lines.at(-1) === "" ? source.lines.length - 1 : source.lines.length;
  const message = `${lines} lines; at most ${MOST_FILE_LINES}: divide the file`;
  const finding = { path: source.path, line: 1, message };
  const ofFile = lines > MOST_FILE_LINES ? [{ key: source.path, lines, finding }] : [];
  return [...ofFile, ...longFunctions(source)];
}

function longFunctions(source: Source): Excess[] {
  const found: Excess[] = [];
  visit(source.tree, (node) => {
    if (!ts.isFunctionLike(node) || isGroupOfTests(node)) return;
    const end = source.tree.getLineAndCharacterOfPosition(node.getEnd()).line + 1;
    const lines = end - lineOf(source, node) + 1;
    if (lines <= MOST_FUNCTION_LINES) return;
    const name = functionName(node);
    const message = `${name} has ${lines} lines; at most ${MOST_FUNCTION_LINES}: divide it`;
    const finding = findingAt(source, node, message);
    found.push({ key: `${source.path}#${name}`, lines, finding });
  });
  return found;
}

/** The function handed to `describe` is a list of tests, not a function. */
function isGroupOfTests(node: ts.Node): boolean {
  return ts.isCallExpression(node.parent) && node.parent.expression.getText() === "describe";
}

function functionName(node: ts.SignatureDeclaration): string {
  const named = ts.isVariableDeclaration(node.parent) || ts.isPropertyAssignment(node.parent);
  const name = node.name ?? (named ? node.parent.name : undefined);
  if (name !== undefined) return name.getText();
  return ts.isConstructorDeclaration(node) ? "constructor" : "a nameless function";
}

/** Lengths admitted for now, by `Excess.key`; the list may only shrink. */
export type Allowlist = Readonly<Record<string, number>>;

/** What is too long and not admitted, and what is admitted without need. */
export function checkExcesses(found: readonly Excess[], allowlist: Allowlist): Finding[] {
  const tooLong = found.filter(({ key, lines }) => lines > (allowlist[key] ?? 0));
  const slack = Object.entries(allowlist).flatMap(([key, admitted]) => {
    const lines = found.find((excess) => excess.key === key)?.lines;
    if (lines !== undefined && lines >= admitted) return [];
    const now = lines === undefined ? "take it off the list" : `lower its number to ${lines}`;
    const message = `${key} is shorter than the allowlist admits (${admitted}): ${now}`;
    return [{ path: "tools/tidy/allowlist.json", line: 1, message }];
  });
  return [...tooLong.map(({ finding }) => finding), ...slack];
}
