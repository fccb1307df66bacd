/**
 * @file The quickstart's text: the TypeScript declarations that `npm` installed with Hadal, pinned
 * by its lock file.
 *
 * `lib.webworker.d.ts` stays out: it repeats a third of `lib.dom.d.ts`, and one of the two in the
 * held-out part would make the model look better than it is.
 */
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { OperationalError } from "../../base/errors.ts";

const PACKAGES: readonly string[] = [
  "typescript-5",
  "@types/node",
  "undici-types",
  "koffi",
  "ignore",
];
const REPEATING = /^lib\.webworker\b/;

/** Paths of the declaration files, in a fixed order. */
export function installedDeclarations(): string[] {
  const require = createRequire(import.meta.url);
  const files = PACKAGES.flatMap((name) => {
    const folder = packageFolder(require, name);
    if (folder === null) return [];
    return readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((path) => path.endsWith(".d.ts") && !REPEATING.test(path.split(/[\\/]/).at(-1) ?? ""))
      .sort()
      .map((path) => join(folder, path));
  });
  if (files.length === 0) {
    throw new OperationalError(
      "data.missing",
      `none of ${PACKAGES.join(", ")} is installed; run npm install, or name a folder with --data`,
    );
  }
  return files;
}

function packageFolder(require: NodeJS.Require, name: string): string | null {
  try {
    return dirname(require.resolve(`${name}/package.json`));
  } catch {
    return null;
  }
}
