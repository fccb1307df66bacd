/** @file The checkout as the tools see it: its root, its files, and how to run its programs. */
import { spawnSync } from "node:child_process";
import { globSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder that holds package.json. */
export const ROOT: string = dirname(dirname(fileURLToPath(import.meta.url)));

/** Folders that hold nothing written by hand. */
const MADE = ["node_modules", "dist", "runs", ".git", ".cache"];

/** The files that match, relative to the root, with forward slashes, in alphabetical order. */
export function repositoryFiles(pattern: string | readonly string[]): string[] {
  const paths = globSync(pattern, {
    cwd: ROOT,
    withFileTypes: true,
    exclude: (entry) => MADE.includes(entry.name),
  });
  return paths
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(ROOT.length + 1))
    .map((path) => path.replaceAll("\\", "/"))
    .sort();
}

export interface Finished {
  /** Zero when all went well; 1 for a program that was killed or did not start. */
  readonly code: number;
  /** What it printed to stdout and stderr together, unless `show` sent it to the terminal. */
  readonly text: string;
}

/** Runs a program that an npm package brings (`typescript/bin/tsc`) with this Node, in the root. */
export function runPackageProgram(
  program: string,
  args: readonly string[],
  { show = false }: { readonly show?: boolean } = {},
): Finished {
  const [packageName, inPackage] = splitProgram(program);
  const manifest = createRequire(import.meta.url).resolve(`${packageName}/package.json`);
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(dirname(manifest), inPackage), ...args],
    { cwd: ROOT, encoding: "utf8", stdio: show ? "inherit" : "pipe" },
  );
  return { code: status ?? 1, text: `${stdout ?? ""}${stderr ?? ""}` };
}

function splitProgram(program: string): [string, string] {
  const parts = program.split("/");
  const nameParts = program.startsWith("@") ? 2 : 1;
  return [parts.slice(0, nameParts).join("/"), parts.slice(nameParts).join("/")];
}
