/**
 * @file Floors: a folder of `src/` imports itself and lower floors, never a sibling, never upwards.
 *
 * Type imports count, and so do `import()`, `siblingModule` and `new URL(…, import.meta.url)`: each
 * makes one folder know another. Tests may import anything.
 */
import { builtinModules } from "node:module";
import { posix } from "node:path";
import ts from "typescript-5";
import { type Finding, findingAt, isTest, type Source, visit } from "./source.ts";

/** The table of ARCHITECTURE.md. */
export const FLOORS: Readonly<Record<string, number>> = {
  base: 0,
  numerics: 1,
  codegen: 1,
  tokenizer: 1,
  device: 2,
  tensor: 3,
  kernels: 4,
  checkpoint: 4,
  parallel: 5,
  model: 6,
  training: 7,
  inference: 7,
  planner: 7,
  posttraining: 8,
  serving: 8,
  evaluation: 8,
  cli: 9,
};

/** Where `node:` modules and `process` may be used: where the system is met. */
const SYSTEM_FOLDERS = [
  "device",
  "checkpoint",
  "training/data",
  "training/ema",
  "training/run",
  "parallel/communicator",
  "inference/prefix-cache/disk",
  "inference/engine/thread",
  "serving",
  "cli",
];

/** One way in which a file names another module. */
export interface Reference {
  readonly node: ts.Node;
  readonly specifier: string;
}

/** What is wrong with a file's imports; `packages` are the runtime dependencies of package.json. */
export function checkFloors(source: Source, packages: readonly string[]): Finding[] {
  if (!source.path.startsWith("src/") || isTest(source.path)) return [];
  const references = moduleReferences(source);
  return [
    ...references.flatMap(({ node, specifier }) => {
      const message = specifier.startsWith(".")
        ? floorProblem(source.path, specifier)
        : packageProblem(source.path, specifier, packages);
      return message === undefined ? [] : [findingAt(source, node, message)];
    }),
    ...checkProcess(source),
  ];
}

/** Every module a file names, whichever way it does. */
export function moduleReferences(source: Source): Reference[] {
  const references: Reference[] = [];
  visit(source.tree, (node) => {
    const named = namedModule(node);
    if (named !== undefined) references.push({ node, specifier: named });
  });
  return references;
}

function namedModule(node: ts.Node): string | undefined {
  if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) {
    return literalText(node.moduleSpecifier);
  }
  if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
    return literalText(node.argument.literal);
  }
  if (ts.isNewExpression(node)) {
    const [path, base] = node.arguments ?? [];
    const besideThisFile = base?.getText() === "import.meta.url";
    return node.expression.getText() === "URL" && besideThisFile ? literalText(path) : undefined;
  }
  if (!ts.isCallExpression(node)) return undefined;
  const [path] = node.arguments;
  if (node.expression.kind === ts.SyntaxKind.ImportKeyword) return literalText(path);
  if (node.expression.getText() !== "siblingModule") return undefined;
  const sibling = literalText(path);
  return sibling === undefined ? undefined : `${sibling}.ts`;
}

function literalText(node: ts.Node | undefined): string | undefined {
  return node !== undefined && ts.isStringLiteralLike(node) ? node.text : undefined;
}

function floorProblem(path: string, specifier: string): string | undefined {
  const target = posix.join(posix.dirname(path), specifier);
  const [root, to] = target.split("/");
  if (root !== "src") return `src may not import ${target}: what it needs lives in src`;
  if (isTest(target)) return `only tests import ${target}`;
  const from = folderOf(path);
  if (to === from || from === undefined) return undefined;
  if (FLOORS[from] === undefined) return `${from} has no floor; give it one in ARCHITECTURE.md`;
  const floor = to === undefined ? undefined : FLOORS[to];
  if (floor !== undefined && floor < FLOORS[from]) return undefined;
  return `${from} may not import ${to}: declare the interface below, implement it above`;
}

/**
 * `kernels` of `src/kernels/matmul/contract.ts`; undefined for the entry `src/index.ts`, which may
 * import all.
 */
function folderOf(path: string): string | undefined {
  const parts = path.split("/");
  return parts.length > 2 ? parts[1] : undefined;
}

function packageProblem(
  path: string,
  specifier: string,
  packages: readonly string[],
): string | undefined {
  const bare = specifier.replace(/^node:/, "");
  if (builtinModules.includes(bare.split("/")[0]!)) {
    if (!specifier.startsWith("node:")) return `write node:${specifier}`;
    return mayMeetSystem(path)
      ? undefined
      : `${folderOf(path)} may not import ${specifier}: hand in what it is needed for`;
  }
  const name = specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");
  if (packages.includes(name)) return undefined;
  return `${name} is not among the dependencies of package.json`;
}

function mayMeetSystem(path: string): boolean {
  return SYSTEM_FOLDERS.some((folder) => path.startsWith(`src/${folder}/`));
}

/** The global `process` is `node:process` without an import. */
function checkProcess(source: Source): Finding[] {
  if (mayMeetSystem(source.path)) return [];
  const findings: Finding[] = [];
  visit(source.tree, (node) => {
    const isUse = ts.isPropertyAccessExpression(node) && node.expression.getText() === "process";
    if (!isUse) return;
    const message = `${folderOf(source.path)} may not use process: hand in what it is needed for`;
    findings.push(findingAt(source, node, message));
  });
  return findings;
}
