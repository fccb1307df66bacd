/** @file A test that fails takes its process along. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { leashed } from "./leash.ts";

test("a process ends with the block that started it, whichever way that is left", async () => {
  const child = spawn(process.execPath, ["-e", "setInterval(() => {}, 1e6)"]);
  const ended = once(child, "exit");
  assert.throws(() => {
    using _ = leashed(child);
    throw new Error("as a test that fails");
  }, /as a test/);
  assert.deepEqual(await ended, [null, "SIGKILL"]);
});

test("a process that has ended is left alone", async () => {
  const child = spawn(process.execPath, ["-e", ""]);
  using _ = leashed(child);
  assert.deepEqual(await once(child, "exit"), [0, null]);
});
