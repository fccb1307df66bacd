/** @file The cache folder is the one that the platform's programs use. */
import assert from "node:assert/strict";
import { homedir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { cacheFolder } from "./cache-folder.ts";

test("the cache folder follows the platform, and XDG_CACHE_HOME before it", () => {
  const home = homedir();
  assert.equal(cacheFolder("x", {}, "linux"), join(home, ".cache", "hadal", "x"));
  assert.equal(cacheFolder("x", {}, "darwin"), join(home, "Library", "Caches", "hadal", "x"));
  assert.equal(cacheFolder("x", { LOCALAPPDATA: "/local" }, "win32"), join("/local", "hadal", "x"));
  const chosen = { XDG_CACHE_HOME: "/chosen", LOCALAPPDATA: "/local" };
  assert.equal(cacheFolder("x", chosen, "win32"), join("/chosen", "hadal", "x"));
  assert.equal(cacheFolder("x", { XDG_CACHE_HOME: "" }, "linux"), join(home, ".cache/hadal/x"));
});
