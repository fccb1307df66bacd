/** @file Why something failed, in words for people. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { reasonOf } from "./errors.ts";

function thrownBy(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  return assert.fail("nothing was thrown");
}

test("the reason of a file system's error is in words, without call, code and path", () => {
  const folder = mkdtempSync(join(tmpdir(), "hadal-reason-"));
  try {
    const read = (path: string): string => reasonOf(thrownBy(() => readFileSync(path)));
    assert.equal(read(join(folder, "none")), "there is no such file or folder");
    assert.equal(read(folder), "it is a folder");
    assert.equal(
      read(join(fileURLToPath(import.meta.url), "inside")),
      "a part of this path is a file",
    );
  } finally {
    rmdirSync(folder);
  }
});

test("the reason of any other error is its message, and of what is no error its text", () => {
  assert.equal(reasonOf(thrownBy(() => JSON.parse("{") as unknown)).includes("JSON"), true);
  assert.equal(reasonOf(Object.assign(new Error("so it is"), { code: "EWHAT" })), "so it is");
  assert.equal(reasonOf("thrown"), "thrown");
});
