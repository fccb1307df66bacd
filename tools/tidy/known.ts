/**
 * @file What the documentation may name: gathered from the sources, package.json and the verbs'
 * declarations.
 */
import { readFileSync } from "node:fs";
import { posix } from "node:path";
import ts from "typescript-5";
import { DECLARATIONS } from "../../src/cli/declarations/all.ts";
import { COMMON_FLAGS } from "../../src/cli/parse.ts";
import { ROOT, repositoryFiles } from "../repository.ts";
import type { Known } from "./docs.ts";
import { type Source, visit } from "./source.ts";

interface Manifest {
  readonly scripts: Readonly<Record<string, string>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
}

/** package.json. */
export function manifest(): Manifest {
  return JSON.parse(readFileSync(`${ROOT}/package.json`, "utf8"));
}

/** Everything there is to be named. */
export function gatherKnown(sources: readonly Source[]): Known {
  const { scripts, dependencies, devDependencies, optionalDependencies } = manifest();
  return {
    paths: withFolders(repositoryFiles(["**/*", ".ci/*"])),
    words: new Set(sources.flatMap(wordsOf)),
    scripts: Object.keys(scripts),
    packages: Object.keys({ ...dependencies, ...devDependencies, ...optionalDependencies }),
    verbs: new Map([
      ["", ["help", "version", "json"]],
      ...DECLARATIONS.map(({ name, flags }): [string, string[]] => [
        name,
        [...Object.keys(flags), ...Object.keys(COMMON_FLAGS)],
      ]),
    ]),
  };
}

function withFolders(files: readonly string[]): Set<string> {
  const paths = new Set(files);
  for (const file of files) {
    for (let folder = posix.dirname(file); folder !== "."; folder = posix.dirname(folder)) {
      paths.add(folder);
    }
  }
  return paths;
}

function wordsOf({ tree }: Source): string[] {
  const words: string[] = [];
  visit(tree, (node) => {
    if (ts.isIdentifier(node)) words.push(node.text);
    else if (ts.isPrivateIdentifier(node)) words.push(node.text.slice(1));
    else if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateTail(node)) {
      words.push(...(node.text.match(/[\w$]+(-[\w$]+)*/g) ?? []));
    }
  });
  return words;
}
