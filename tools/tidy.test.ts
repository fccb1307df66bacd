/**
 * @file The house rules as tests, over every file of the repository. The rules are in `tidy/`; the
 * reasons in `CONTRIBUTING.md`. `UPDATE_GOLDENS=1` rewrites the list of flags and shrinks the
 * allowlist; it never lets it grow.
 */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { DECLARATIONS } from "../src/cli/declarations/all.ts";
import { ROOT, repositoryFiles } from "./repository.ts";
import { checkBans, checkText } from "./tidy/bans.ts";
import { checkDocument } from "./tidy/docs.ts";
import { flagList } from "./tidy/flag-list.ts";
import { checkFloors } from "./tidy/floors.ts";
import { gatherKnown, manifest } from "./tidy/known.ts";
import {
  type Allowlist,
  checkColumns,
  checkExcesses,
  checkHeader,
  excesses,
} from "./tidy/shape.ts";
import { type Finding, readSource } from "./tidy/source.ts";

const update = process.env["UPDATE_GOLDENS"] === "1";
const sources = repositoryFiles("{src,test,tools,bench,examples}/**/*.ts").map(readSource);
const documents = repositoryFiles(["*.md", "docs/**/*.md"]);
const launchers = repositoryFiles("bin/*.js").map(readSource);
const code = [...sources, ...launchers];

function nothing(findings: readonly Finding[]): void {
  const lines = findings.map(({ path, line, message }) => `  ${path}:${line}: ${message}`);
  assert.equal(findings.length, 0, `\n${lines.join("\n")}`);
}

describe("the house rules", () => {
  test("a folder imports itself and lower floors, and meets the system only where it may", () => {
    const packages = Object.keys(manifest().dependencies);
    nothing(sources.flatMap((source) => checkFloors(source, packages)));
  });

  test("every file opens by saying what it is", () => {
    nothing(sources.flatMap(checkHeader));
  });

  test("no line has more than 100 columns", () => {
    nothing(code.flatMap(checkColumns));
  });

  test("files and functions are short, and the allowlist only shrinks", () => {
    const path = join(ROOT, "tools/tidy/allowlist.json");
    const allowlist: Allowlist = JSON.parse(readFileSync(path, "utf8"));
    const found = code.flatMap(excesses);
    if (update) {
      const lengths = new Map(found.map(({ key, lines }) => [key, lines]));
      const kept = Object.entries(allowlist).flatMap(([key, admitted]) => {
        const lines = lengths.get(key);
        return lines === undefined ? [] : [[key, Math.min(lines, admitted)]];
      });
      writeFileSync(path, `${JSON.stringify(Object.fromEntries(kept), null, 2)}\n`);
    } else nothing(checkExcesses(found, allowlist));
  });

  test("nothing banned is written", () => {
    nothing(sources.flatMap(checkBans));
    nothing(code.flatMap(({ path, text }) => checkText(path, text)));
    const texts = documents.map((path) => [path, readFileSync(join(ROOT, path), "utf8")] as const);
    nothing(texts.flatMap(([path, text]) => checkText(path, text)));
  });

  test("what the documents name exists", () => {
    const known = gatherKnown(code);
    const read = (path: string): string => readFileSync(join(ROOT, path), "utf8");
    nothing(documents.flatMap((path) => checkDocument(path, read(path), known)));
  });

  test("the flags of the command line are the ones that were agreed", () => {
    const path = join(ROOT, "tools/tidy/cli-flags.txt");
    const flags = flagList(DECLARATIONS);
    if (update) writeFileSync(path, flags);
    const message =
      "the flags changed; if they were meant to, run UPDATE_GOLDENS=1 npm test -- tidy";
    assert.equal(flags, existsSync(path) ? readFileSync(path, "utf8") : "", message);
  });

  test("each public entry of package.json has its barrel in src, and each barrel its entry", () => {
    const { exports } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
    const entries = Object.keys(exports).filter((entry) => entry !== "./package.json");
    const barrels = repositoryFiles(["src/index.ts", "src/*/index.ts"]).map((path) =>
      path.replace(/^src/, ".").replace(/\/index\.ts$/, ""),
    );
    assert.deepEqual(entries.toSorted(), barrels.toSorted());
    for (const entry of entries) {
      const built = `${entry.replace(/^\./, "./dist")}/index`;
      assert.deepEqual(exports[entry], { types: `${built}.d.ts`, default: `${built}.js` });
    }
  });

  test("the lock file holds every platform's packages, so that npm ci works on each", () => {
    const lock: Lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
    const held = Object.keys(lock.packages).map((path) => path.split("node_modules/").at(-1));
    const missing = Object.entries(lock.packages).flatMap(([path, { optionalDependencies = {} }]) =>
      Object.keys(optionalDependencies)
        .filter((name) => !held.includes(name))
        .map((name) => `${path} wants ${name}: choose a version that the registry has whole`),
    );
    assert.deepEqual(missing, []);
  });
});

interface Lock {
  readonly packages: Readonly<
    Record<string, { readonly optionalDependencies?: Readonly<Record<string, string>> }>
  >;
}
