/**
 * @file Wraps comments that are wider than 100 columns; Biome wraps code only.
 *
 *     node bin/node24.js tools/rewrap.ts [FILE…]    without files: every source
 *
 * Only paragraphs with a line that is too wide are touched, from that line on. Tables (three spaces
 * in a row) and comments behind code stay as they are: those want a person.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { ROOT, repositoryFiles } from "./repository.ts";

const MOST_COLUMNS = 100;

/** A comment line: what stands before its text (indent and marker), and the text. */
const COMMENT_LINE = /^(\s*(?:\*|\/\/)) ?(.*)$/;
const WHOLE_BLOCK = /^(\s*)\/\*\* (.*) \*\/$/;
const LIST_ITEM = /^\s*([-*•]|\d+\.) /;

/** The text with its wide comment lines wrapped. */
export function rewrap(text: string): string {
  const lines = text.split("\n").flatMap(openWideBlock);
  for (let at = 0; at < lines.length; at++) {
    if ([...lines[at]!].length <= MOST_COLUMNS) continue;
    const end = paragraphEnd(lines, at);
    if (end === at) continue;
    const wrapped = wrapParagraph(lines.slice(at, end));
    lines.splice(at, end - at, ...wrapped);
    at += wrapped.length - 1;
  }
  return lines.join("\n");
}

/** A one-line block comment that is too wide becomes one of three lines or more. */
function openWideBlock(line: string): string[] {
  const [, indent, text] = WHOLE_BLOCK.exec(line) ?? [];
  if (text === undefined || [...line].length <= MOST_COLUMNS) return [line];
  return [`${indent}/**`, `${indent} * ${text}`, `${indent} */`];
}

interface CommentLine {
  readonly marker: string;
  readonly text: string;
}

function commentLine(line: string | undefined): CommentLine | undefined {
  const [, marker, text] = COMMENT_LINE.exec(line ?? "") ?? [];
  if (marker === undefined || text === undefined) return undefined;
  const isText = text.trim() !== "" && text !== "/" && !/\S {3,}\S/.test(text);
  return isText ? { marker, text } : undefined;
}

/** The line after the last one that continues the text of the line `at`. */
function paragraphEnd(lines: readonly string[], at: number): number {
  const first = commentLine(lines[at]);
  if (first === undefined) return at;
  const indent = hangingIndent(first.text);
  let end = at + 1;
  for (; end < lines.length; end++) {
    const next = commentLine(lines[end]);
    if (next === undefined || next.marker !== first.marker) break;
    if (/^\s*@/.test(next.text) || LIST_ITEM.test(next.text)) break;
    if (next.text.search(/\S/) !== indent.length) break;
  }
  return end;
}

/** What a continuation line begins with: the text's own indent, deeper under a list's mark. */
function hangingIndent(text: string): string {
  const own = /^\s*/.exec(text)![0];
  return LIST_ITEM.test(text) ? " ".repeat(LIST_ITEM.exec(text)![0].length) : own;
}

function wrapParagraph(lines: readonly string[]): string[] {
  const comments = lines.map((line) => commentLine(line)!);
  const { marker, text } = comments[0]!;
  const indent = hangingIndent(text);
  const words = comments.flatMap((comment) => comment.text.trim().split(" "));
  const wrapped: string[] = [];
  let line = `${marker} ${/^\s*/.exec(text)![0]}${words.shift()}`;
  for (const word of words) {
    if ([...line].length + 1 + [...word].length > MOST_COLUMNS) {
      wrapped.push(line);
      line = `${marker} ${indent}${word}`;
    } else line += ` ${word}`;
  }
  return [...wrapped, line];
}

if (import.meta.main) {
  const given = process.argv.slice(2);
  const all = repositoryFiles(["{src,test,tools,bench,examples}/**/*.ts", "bin/*.js"]);
  const paths =
    given.length > 0 ? given.map((path) => resolve(path)) : all.map((path) => join(ROOT, path));
  for (const path of paths) {
    const text = readFileSync(path, "utf8");
    const wrapped = rewrap(text);
    if (wrapped === text) continue;
    writeFileSync(path, wrapped);
    console.log(`wrapped ${path}`);
  }
}
