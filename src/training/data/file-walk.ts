/**
 * @file Which files a corpus is made of: roots walked in a stable order, `.gitignore` honoured.
 *
 * Names are sorted by UTF-16 code units, so the order is the same on every machine and in every
 * language. A `.gitignore` counts from the directory it stands in, down; those above a root do not
 * count, because a root was asked for by name. `.git` and `node_modules` are skipped unless they
 * are the root. Symbolic links are followed; a directory or file reached twice, in a loop or by two
 * roots, is taken once.
 */
import { lstatSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import ignore from "ignore";
import { OperationalError, reasonOf } from "../../base/errors.ts";

/** One file of a corpus. */
export interface CorpusFile {
  /** Where it is, from where its root was named. */
  readonly path: string;
  /** The root's own name and the way from there, with slashes: the same wherever the root lies. */
  readonly name: string;
}

export interface FileWalk {
  readonly files: readonly CorpusFile[];
  /** Files and whole directories that a `.gitignore` excludes. */
  readonly numIgnored: number;
  /** Entries that could not be looked at, and those that are neither file nor directory. */
  readonly numUnreadable: number;
}

const SKIPPED_DIRECTORIES: ReadonlySet<string> = new Set([".git", "node_modules"]);

/**
 * The rules of one `.gitignore`; `depth` is how much of a path from the root belongs to its
 * directory.
 */
interface IgnoreLevel {
  readonly depth: number;
  readonly rules: ignore.Ignore;
}

/** The files under the roots, which may be files themselves. */
export function walkFiles(roots: readonly string[]): FileWalk {
  const walker = new Walker();
  for (const root of roots) {
    try {
      statSync(root);
    } catch (error) {
      const reason = reasonOf(error);
      const message = `${root} cannot be read (${reason}); name a file or folder that exists`;
      throw new OperationalError("data.missing", message, { path: root }, error);
    }
    walker.visit(root, { name: basename(resolve(root)), parts: [], levels: [] });
  }
  return walker;
}

interface Place {
  readonly name: string;
  /** The names from the root, without the root's own. */
  readonly parts: readonly string[];
  readonly levels: readonly IgnoreLevel[];
}

class Walker implements FileWalk {
  readonly files: CorpusFile[] = [];
  numIgnored = 0;
  numUnreadable = 0;
  readonly #seen = new Set<string>();

  visit(path: string, place: Place): void {
    let isDirectory: boolean;
    let isFile: boolean;
    let realPath: string;
    try {
      const status = statSync(path);
      isDirectory = status.isDirectory();
      isFile = status.isFile();
      realPath = realpathSync(path);
    } catch {
      this.numUnreadable++;
      return;
    }
    if (isIgnored(place, isDirectory)) {
      this.numIgnored++;
      return;
    }
    if (this.#seen.has(realPath)) return;
    this.#seen.add(realPath);
    if (isDirectory) this.#visitDirectory(path, place);
    else if (isFile) this.files.push({ path, name: place.name });
    else this.numUnreadable++;
  }

  #visitDirectory(path: string, place: Place): void {
    let names: string[];
    try {
      names = readdirSync(path).sort();
    } catch {
      this.numUnreadable++;
      return;
    }
    const levels = names.includes(".gitignore") ? withRulesOf(path, place) : place.levels;
    for (const name of names) {
      if (SKIPPED_DIRECTORIES.has(name)) continue;
      const parts = [...place.parts, name];
      this.visit(join(path, name), { name: `${place.name}/${name}`, parts, levels });
    }
  }
}

function withRulesOf(directory: string, place: Place): readonly IgnoreLevel[] {
  const path = join(directory, ".gitignore");
  // As git: a link is not followed here, it could point out of the tree.
  if (!lstatSync(path).isFile()) return place.levels;
  try {
    const rules = ignore({ ignorecase: false }).add(readFileSync(path, "utf8"));
    return [...place.levels, { depth: place.parts.length, rules }];
  } catch {
    return place.levels;
  }
}

/** The innermost rule that says anything decides. A parent that is ignored is never entered. */
function isIgnored(place: Place, isDirectory: boolean): boolean {
  for (const { depth, rules } of place.levels.toReversed()) {
    const relative = place.parts.slice(depth).join("/");
    if (!ignore.isPathValid(relative)) continue;
    const verdict = rules.test(isDirectory ? `${relative}/` : relative);
    if (verdict.ignored) return true;
    if (verdict.unignored) return false;
  }
  return false;
}
