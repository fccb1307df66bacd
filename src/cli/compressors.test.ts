/**
 * @file The yardsticks: programs and packages agree, and a machine without either gets null and a
 * reason.
 */
import assert from "node:assert/strict";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { compressedBytes } from "./compressors.ts";

const NOWHERE = "/nonexistent";

/** Real declarations, of a pinned dependency. */
const declarations = await readFile(
  createRequire(import.meta.url).resolve("typescript-5/lib/lib.es5.d.ts"),
);

test("the package gives bzip2's size to the byte, and xz's within 2%", async (t) => {
  const byProgram = await compressedBytes(declarations);
  const byPackage = await compressedBytes(declarations, NOWHERE);
  assert.match(byPackage.how.xz, /lzma1/);
  assert.match(byPackage.how.bzip2, /bzip2-wasm/);
  if (byProgram.how.bzip2.includes("package")) t.diagnostic("no bzip2 program to compare with");
  assert.equal(byPackage.bzip2, byProgram.bzip2);
  const ratio = byPackage.xz! / byProgram.xz!;
  assert.ok(
    Math.abs(ratio - 1) < 0.02,
    `lzma1 made ${byPackage.xz}, ${byProgram.how.xz} ${byProgram.xz}`,
  );
});

test("the package takes more bytes than its first memory holds", async () => {
  const mostlyZeros = new Uint8Array(3_500_000);
  mostlyZeros.set(declarations);
  const { bzip2, how } = await compressedBytes(mostlyZeros, NOWHERE);
  assert.ok(bzip2 !== null && bzip2 > 10_000, how.bzip2);
});

test("a program of that name which does not write its format is not believed", async () => {
  const folder = await mkdtemp(join(tmpdir(), "hadal-compressors-"));
  try {
    for (const name of ["xz", "bzip2"]) {
      await writeFile(join(folder, name), "#!/bin/sh\necho surprise\n");
      await chmod(join(folder, name), 0o755);
    }
    const { how } = await compressedBytes(declarations.subarray(0, 1000), folder);
    assert.match(how.xz, /lzma1/);
    assert.match(how.bzip2, /bzip2-wasm/);
  } finally {
    await rm(folder, { recursive: true });
  }
});
