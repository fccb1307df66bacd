/** @file The process of `hadal` from outside: streams that break, and what its exit codes are. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { VERSION } from "../src/base/version.ts";

const LAUNCHER = fileURLToPath(new URL("../bin/hadal.js", import.meta.url));

interface Ending {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `hadal`; with `deaf`, nobody reads its stdout. */
function hadal(words: readonly string[], { deaf = false } = {}): Promise<Ending> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [LAUNCHER, ...words]);
    let stdout = "";
    let stderr = "";
    if (deaf) child.stdout.destroy();
    else child.stdout.on("data", (chunk) => (stdout += chunk));
    child.stderr.on("data", (chunk) => (stderr += chunk));
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}

describe("the process of hadal", () => {
  test("prints its version and ends with 0", async () => {
    const ending = await hadal(["--version"]);
    assert.deepEqual(ending, { code: 0, stdout: `hadal ${VERSION}\n`, stderr: "" });
  });

  test("ends with 2 after a wrong word, and says it on stderr without a stack", async () => {
    const { code, stdout, stderr } = await hadal(["danse"]);
    assert.deepEqual([code, stdout], [2, ""]);
    assert.match(stderr, /^error: unknown verb danse/);
    assert.doesNotMatch(stderr, /\n\s+at /);
  });

  test("ends without a word when nobody reads what it prints", async () => {
    const { code, stderr } = await hadal(["--help"], { deaf: true });
    assert.deepEqual([code, stderr], [141, ""]);
  });
});
