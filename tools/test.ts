/**
 * @file `npm test`: every test of the repository in one process, types and lint among them.
 *
 *     npm test                          everything
 *     npm test -- numerics tokenizer    the test files whose path contains one of the words
 *     npm test -- --nightly             the slow checks (*.nightly.ts) too
 *     npm test -- --test-name-pattern='rounds'    Node's own --test-… flags pass through
 *
 * Files share one process (no isolation): ten times faster, and safe because modules hold no
 * mutable state. What Node makes of each file it keeps in .cache/node: ranks on threads and
 * processes that tests start load the same files again and again.
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT, repositoryFiles } from "./repository.ts";

const args = process.argv.slice(2);
const nodeFlags = args.filter((word) => word.startsWith("--test-"));
const { values, positionals: filters } = parseArgs({
  args: args.filter((word) => !nodeFlags.includes(word)),
  options: { nightly: { type: "boolean", default: false } },
  allowPositionals: true,
});

const FIRST = "tools/check.test.ts";
const kinds = values.nightly ? "{test,nightly}" : "test";
const files = repositoryFiles(`{src,test,tools,bench}/**/*.${kinds}.ts`)
  .filter((path) => filters.length === 0 || filters.some((word) => path.includes(word)))
  .sort((left, right) => Number(right === FIRST) - Number(left === FIRST));

if (files.length === 0) {
  console.error(`no test file's path contains ${filters.join(" or ")}`);
  process.exit(1);
}
const child = spawn(
  process.execPath,
  ["--test", "--test-isolation=none", "--test-reporter=spec", ...nodeFlags, ...files],
  {
    cwd: ROOT,
    stdio: "inherit",
    env: { NODE_COMPILE_CACHE: join(ROOT, ".cache/node"), ...process.env },
  },
);
child.on("exit", (code) => {
  process.exitCode = code ?? 1;
});
