/** @file What may not be written, each with what to write instead. */
import ts from "typescript-5";
import { type Finding, findingAt, isTest, type Source, visit } from "./source.ts";

/** Says what is wrong with a node, or nothing. */
type Ban = (node: ts.Node, path: string) => string | undefined;

/** The folders whose programs speak to people. */
const SPEAKING = ["src/cli/", "tools/", "bench/", "examples/"];

const BANS: readonly Ban[] = [
  (node, path) => {
    if (!ts.isNewExpression(node) || !path.startsWith("src/") || isTest(path)) return undefined;
    const name = node.expression.getText();
    if (!/^(Aggregate|Eval|Range|Reference|Syntax|Type|URI)?Error$/.test(name)) return undefined;
    return `new ${name}: use assert for our bugs, OperationalError for the world's failures`;
  },
  (node, path) => {
    const mayPrint = isTest(path) || SPEAKING.some((folder) => path.startsWith(folder));
    if (mayPrint || !isMember(node, "console")) return undefined;
    return "console: return the value, or hand in a reporter; only src/cli and tools print";
  },
  (node) => (isMember(node, "Math", "random") ? "Math.random: use Random with a seed" : undefined),
  (node) => {
    const isDefault = ts.isExportAssignment(node) || node.kind === ts.SyntaxKind.DefaultKeyword;
    return isDefault ? "default export: give it a name" : undefined;
  },
  (node) =>
    ts.isEnumDeclaration(node) ? 'enum: use a const array "as const" and its union' : undefined,
  (node) => {
    const isNamespace = ts.isModuleDeclaration(node) && ts.isIdentifier(node.name);
    if (!isNamespace || isAmbient(node)) return undefined;
    return "namespace: a module is one already";
  },
  (node) =>
    node.kind === ts.SyntaxKind.AnyKeyword ? "any: use unknown, and narrow it" : undefined,
  (node) => {
    const isOnly = ["test", "it", "describe"].some((name) => isMember(node, name, "only"));
    return isOnly ? ".only: the other tests would not run" : undefined;
  },
];

/** What is banned in any text, documentation included. */
const TEXT_BANS: readonly { readonly pattern: RegExp; readonly message: string }[] = [
  {
    pattern: /(^|[\s"'`(=])\/(home|root|Users|work)\/\w/,
    message: "a path of one machine: name it relative to the repository, or use a temporary folder",
  },
  {
    // The brackets keep this line from being its own finding.
    pattern: /(\/\/|\/\*|^\s*\*|<!--).*\b(T[O]DO|FIX[M]E|X{3}|HAC[K])\b/,
    message: "a note to self: do it, or write it where the project keeps its plans",
  },
  {
    pattern: /(\/\/|\/\*)\s*@ts-(ignore|expect-error|nocheck)/,
    message: "a silenced compiler: mend the type",
  },
];

/** The banned things in a source file's syntax. */
export function checkBans(source: Source): Finding[] {
  const findings: Finding[] = [];
  visit(source.tree, (node) => {
    for (const ban of BANS) {
      const message = ban(node, source.path);
      if (message !== undefined) findings.push(findingAt(source, node, message));
    }
  });
  return findings;
}

/** The banned things in any text. */
export function checkText(path: string, text: string): Finding[] {
  return text.split("\n").flatMap((line, index) =>
    TEXT_BANS.filter(({ pattern }) => pattern.test(line)).map(({ message }) => ({
      path,
      line: index + 1,
      message,
    })),
  );
}

function isMember(node: ts.Node, object: string, member?: string): boolean {
  if (!ts.isPropertyAccessExpression(node) || node.expression.getText() !== object) return false;
  return member === undefined || node.name.text === member;
}

/** Declarations of what exists elsewhere (`declare …`, `.d.ts`) have no other way to say it. */
function isAmbient(node: ts.Node): boolean {
  if (node.getSourceFile().isDeclarationFile) return true;
  const modifiers = ts.canHaveModifiers(node) ? (ts.getModifiers(node) ?? []) : [];
  const declared = modifiers.some(({ kind }) => kind === ts.SyntaxKind.DeclareKeyword);
  return declared || (node.parent !== undefined && isAmbient(node.parent));
}
