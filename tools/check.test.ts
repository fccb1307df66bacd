/**
 * @file The type checker and the linter as tests, so that one run and one exit code cover
 * everything.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { runPackageProgram } from "./repository.ts";

test("the type checker has nothing to say", () => {
  const { code, text } = runPackageProgram("typescript/bin/tsc", ["--noEmit"]);
  assert.equal(code, 0, `tsc --noEmit:\n${text}`);
});

test("the linter and the formatter have nothing to say", () => {
  const args = ["check", "--error-on-warnings", "--colors=off", "."];
  const { code, text } = runPackageProgram("@biomejs/biome/bin/biome", args);
  assert.equal(code, 0, `biome check .:\n${text}`);
});
