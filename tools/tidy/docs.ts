/**
 * @file What the documentation names must exist: paths, symbols, scripts, verbs, flags, links.
 *
 * Only code is checked (`backticks`, fenced blocks) and relative links; prose may say what it
 * likes. A word counts as a path when it holds a slash or ends like a file, and as a symbol when it
 * looks like one of ours (camelCase, PascalCase of two words, snake_case, `call()`). Placeholders
 * (NAME, <name>, …, *) are nobody's name.
 */
import { posix } from "node:path";
import type { Finding } from "./source.ts";

/** What there is to be named. */
export interface Known {
  /** Every file and folder, relative to the root, without a trailing slash. */
  readonly paths: ReadonlySet<string>;
  /** Every identifier and every word of a string literal in the sources. */
  readonly words: ReadonlySet<string>;
  /** The scripts of package.json. */
  readonly scripts: readonly string[];
  /** Dependencies of all kinds, by name. */
  readonly packages: readonly string[];
  /** The flags of each verb, `--` not included; `""` holds those of `hadal` itself. */
  readonly verbs: ReadonlyMap<string, readonly string[]>;
}

interface Code {
  readonly line: number;
  readonly text: string;
  /** Lines of a fenced block are read as commands only: they may be in any language. */
  readonly fenced: boolean;
}

/** Endings that make a word without a slash a file of ours. */
const FILE_ENDING = /[\w-]\.(ts|js|cjs|mjs|json|md|txt|sh|yml|yaml|html|svg)$/;
/** Files that Hadal writes or reads, rather than being written in them. */
const FILES_OF_USERS = new Set([
  "added_tokens.json",
  "config.json",
  "generation_config.json",
  "model.safetensors.index.json",
  "special_tokens_map.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "trace.json",
]);
/** Folders that commands and installations make. */
const MADE_FOLDERS = /^(\.\/)?(runs|dist|node_modules|checkpoints)(\/|$)/;
/** Commands npm has of its own. */
const NPM_COMMANDS = ["ci", "install", "pack", "publish", "start", "test", "view", "exec"];

/** What a document names that does not exist. */
export function checkDocument(path: string, text: string, known: Known): Finding[] {
  const findings: Finding[] = [];
  const report = (line: number, message: string | undefined): void => {
    if (message !== undefined) findings.push({ path, line, message });
  };
  for (const { line, text: code, fenced } of codeOf(text)) {
    for (const command of commandsOf(code)) report(line, commandProblem(command, known));
    if (!fenced) report(line, nameProblem(code, path, known));
  }
  for (const { line, target } of linksOf(text)) report(line, linkProblem(target, path, known));
  return findings;
}

function codeOf(text: string): Code[] {
  const found: Code[] = [];
  let inFence = false;
  for (const [index, content] of text.split("\n").entries()) {
    const line = index + 1;
    if (/^\s*(```|~~~)/.test(content)) inFence = !inFence;
    else if (inFence || /^ {4}\S/.test(content)) found.push({ line, text: content, fenced: true });
    else {
      for (const [, code] of content.matchAll(/(?<!`)`([^`]+)`(?!`)/g)) {
        found.push({ line, text: code!, fenced: false });
      }
    }
  }
  return found;
}

/**
 * The commands of a line: without prompt, comment and environment, one for each part of a chain.
 */
function commandsOf(code: string): string[][] {
  const plain = code
    .trim()
    .replace(/^\$ /, "")
    .replace(/(^|\s)#.*$/, "");
  return plain
    .split(/&&|\|\|?|;/)
    .map((part) => part.trim().split(/\s+/))
    .map((words) => words.slice(words.findIndex((word) => !/^[A-Z_]+=/.test(word))));
}

function commandProblem(words: readonly string[], known: Known): string | undefined {
  const [program, first, second] = words;
  if (program === "npm") return npmProblem(first, second, known);
  if (program === "npx" && first === "hadal") return hadalProblem(words.slice(2), known);
  if (program === "hadal") return hadalProblem(words.slice(1), known);
  if (program !== "node" || first === undefined || !FILE_ENDING.test(first)) return undefined;
  return known.paths.has(first) ? undefined : `${first} does not exist`;
}

function npmProblem(
  first: string | undefined,
  second: string | undefined,
  known: Known,
): string | undefined {
  const script = first === "run" ? second : first;
  if (script === undefined || known.scripts.includes(script)) return undefined;
  if (first !== "run" && NPM_COMMANDS.includes(script)) return undefined;
  return `package.json has no script ${script}`;
}

function hadalProblem(words: readonly string[], known: Known): string | undefined {
  const [first] = words;
  if (first === undefined || isPlaceholder(first)) return undefined;
  const verb = first.startsWith("-") ? "" : first;
  const flags = known.verbs.get(verb);
  if (flags === undefined) return `hadal has no verb ${verb}`;
  // What stands after -- is somebody else's command line.
  const end = words.indexOf("--");
  const unknown = words
    .slice(0, end < 0 ? words.length : end)
    .filter((word) => word.startsWith("--"))
    .map((word) => word.slice(2).replace(/[^a-z-].*$/, ""))
    .find((name) => !flags.includes(name));
  return unknown === undefined ? undefined : `hadal ${verb} has no flag --${unknown}`.trim();
}

function nameProblem(code: string, document: string, known: Known): string | undefined {
  const word = code.trim().replace(/[.,:;]$/, "");
  if (/\s/.test(word) || isPlaceholder(word)) return undefined;
  if (/^--[a-z]/.test(word)) {
    const name = word.slice(2).replace(/=.*$/, "");
    const ofHadal = [...known.verbs.values()].some((flags) => flags.includes(name));
    return ofHadal || known.words.has(name) ? undefined : `no program here knows ${word}`;
  }
  if (isPath(word)) return pathProblem(word, document, known);
  return symbolProblem(word, known);
}

function isPlaceholder(word: string): boolean {
  return /NAME|[<>…*{}[\]|]|\.\.\.|(^|\/)[A-Z]{1,}(\/|$)|-N$/.test(word);
}

function isPath(word: string): boolean {
  if (!/^[\w.][\w@./-]*$/.test(word)) return false;
  return FILE_ENDING.test(word) || (word.includes("/") && !/^[\w.]+\/s$/.test(word));
}

function pathProblem(word: string, document: string, known: Known): string | undefined {
  const path = word.replace(/^\.\//, "").replace(/\/$/, "");
  const inPackage = known.packages.some((name) => path === name || path.startsWith(`${name}/`));
  if (inPackage || MADE_FOLDERS.test(path) || FILES_OF_USERS.has(posix.basename(path))) {
    return undefined;
  }
  const candidates = [path, `src/${path}`, posix.join(posix.dirname(document), path)];
  if (candidates.some((candidate) => known.paths.has(candidate))) return undefined;
  const anywhere = [...known.paths].some((candidate) => candidate.endsWith(`/${path}`));
  return anywhere ? undefined : `${word} does not exist`;
}

const SYMBOL = /^#?[A-Za-z_$][\w$]*([.#][A-Za-z_$][\w$]*)*(\(.*\))?$/;
const LOOKS_LIKE_OURS = /[a-z][A-Z]|[A-Za-z0-9]_[A-Za-z0-9]|\)$|^[A-Z]\w*[.#]/;

function symbolProblem(word: string, known: Known): string | undefined {
  if (!SYMBOL.test(word) || !LOOKS_LIKE_OURS.test(word)) return undefined;
  const parts = word.replace(/\(.*\)$/, "").split(/[.#]/);
  const missing = parts.find((part) => part !== "" && !known.words.has(part));
  return missing === undefined ? undefined : `no source says ${missing}`;
}

function linksOf(text: string): { readonly line: number; readonly target: string }[] {
  return text.split("\n").flatMap((content, index) =>
    [...content.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => ({
      line: index + 1,
      target: target!,
    })),
  );
}

function linkProblem(target: string, document: string, known: Known): string | undefined {
  if (/^[a-z]+:/.test(target) || target.startsWith("#")) return undefined;
  const path = posix.join(posix.dirname(document), target.replace(/#.*$/, "")).replace(/\/$/, "");
  return known.paths.has(path) ? undefined : `the link leads to ${path}, which does not exist`;
}
