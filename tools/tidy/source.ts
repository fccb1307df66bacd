/**
 * @file A source file as the tidy rules see it: its text, its lines, its syntax tree.
 *
 * Parsed by TypeScript 5, which is here as part of the quickstart's corpus: TypeScript 7 exports no
 * parser.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript-5";
import { ROOT } from "../repository.ts";

export interface Source {
  /** Relative to the root, with forward slashes. */
  readonly path: string;
  readonly text: string;
  readonly lines: readonly string[];
  readonly tree: ts.SourceFile;
}

/** Something that is not as it should be, and what to do instead. */
export interface Finding {
  readonly path: string;
  /** Counted from 1. */
  readonly line: number;
  readonly message: string;
}

/** Reads and parses a file of the repository. */
export function readSource(path: string): Source {
  return parseSource(path, readFileSync(join(ROOT, path), "utf8"));
}

/** Parses a text as if it lay at `path`. */
export function parseSource(path: string, text: string): Source {
  const tree = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  return { path, text, lines: text.split("\n"), tree };
}

/** Whether the file is a test or helps tests: it may import anything, and is not published. */
export function isTest(path: string): boolean {
  return /(\.(test|nightly|fixture)|test-support)\.ts$/.test(path) || path.startsWith("test/");
}

/** Calls `see` with every node of the tree, parents first. */
export function visit(node: ts.Node, see: (node: ts.Node) => void): void {
  see(node);
  ts.forEachChild(node, (child) => visit(child, see));
}

/** The line a node begins on, comments before it not counted. */
export function lineOf(source: Source, node: ts.Node): number {
  return source.tree.getLineAndCharacterOfPosition(node.getStart(source.tree)).line + 1;
}

/** A finding at a node. */
export function findingAt(source: Source, node: ts.Node, message: string): Finding {
  return { path: source.path, line: lineOf(source, node), message };
}
